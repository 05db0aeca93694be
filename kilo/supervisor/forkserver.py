"""The forkserver: workers are forked from a small process that holds no socket and no thread, and
share the memory of what they all import.

It is one of multiprocessing's, of which four things are private: which process it is, where
it listens, that a signal mask in place when it is started is its own and its children's, and what its
resource tracker is told by.
"""

from __future__ import annotations

import os
import signal
from multiprocessing import forkserver, get_context, resource_tracker, util
from multiprocessing.context import ForkServerContext
from typing import Any

from kilo.sandbox.home import give
from kilo.sandbox.profiles import SUPERVISOR
from kilo.worker import ENDING

PRELOAD = ["kilo.supervisor.preload"]


def process_context() -> ForkServerContext:
    """What makes the processes. Starts nothing yet."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def ensure_running() -> None:
    """Start what is not running, with the signals that end us blocked: a signal to the process group
    ends neither it nor a worker that has no handlers yet. Workers unblock them. Raises OSError."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        _do_without_tracker()
        forkserver.ensure_running()
        _close_to_workers(util.get_temp_dir())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _do_without_tracker() -> None:
    """Nothing here is of the kind that a resource tracker removes, as shared memory is, and it would be one
    more interpreter in memory: what it would be told goes nowhere. Raises OSError."""
    tracker: Any = resource_tracker._resource_tracker
    if tracker._fd is None:
        tracker._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _close_to_workers(directory: str) -> None:
    """What it listens on would start anything for workers that are user 0, with the parent's rights."""
    if os.stat(directory).st_uid != SUPERVISOR:
        give(directory, SUPERVISOR, SUPERVISOR, 0o770)


def reachable() -> bool:
    """Whether its socket can still be connected to; yes as long as it has not been started."""
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    return address is None or os.path.exists(address)


def reach_again() -> None:
    """End it where it cannot be reached any more; its end is noticed, and another one started."""
    os.makedirs(util.get_temp_dir(), 0o700, exist_ok=True)
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is not None and not reachable():
        os.kill(pid, signal.SIGKILL)


def own_pids() -> set[int | None]:
    """The processes whose end multiprocessing waits for by itself."""
    return {forkserver._forkserver._forkserver_pid}  # type: ignore[attr-defined]
