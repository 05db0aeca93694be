"""One worker as the parent sees it: its process, its heartbeat, its lives so far."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess

from kilo.bus import Change, Loop, Subscription, Timer, state_of
from kilo.config import Config
from kilo.log import Logger
from kilo.model.host import WorkerState
from kilo.supervisor.backoff import Backoff

PRELOAD = ["kilo.supervisor.child", "kilo.bus", "multiprocessing.spawn"]
RESTART_GRACE = 5.0
"""Seconds a worker has to end when it is to be restarted; then it is killed."""
START_LIMIT = 30.0
"""Seconds a worker may take to its first heartbeat."""
HANG_LIMIT = 15.0
"""Seconds without a heartbeat after which a worker counts as hung."""


def _nobody(name: str) -> None:
    pass


def process_context() -> ForkServerContext:
    """The forkserver: workers are forked from a small process that holds no socket and no thread,
    and share the memory of what they all import."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


Target = Callable[[str, Config], None]


@dataclass(frozen=True)
class Launcher:
    """Makes processes that run ``target(name, config)``."""

    context: ForkServerContext
    target: Target

    def process(self, name: str, config: Config) -> ForkServerProcess:
        return self.context.Process(target=self.target, args=(name, config), name=name)


class WorkerProcess:
    """Keeps one worker running. ``on_permanent`` is called with its name when it says, by exit
    status 2, that starting it again will not help."""

    def __init__(self, name: str, config: Config, loop: Loop, log: Logger, launcher: Launcher) -> None:
        self.name = name
        self.restarts = 0
        self.last_error = ""
        self.state: WorkerState | None = None
        self.heard = 0.0
        self.wanted = True
        self.on_permanent: Callable[[str], None] = _nobody
        self.on_ended: Callable[[str], None] = _nobody
        self._config = config
        self._loop = loop
        self._log = log.bind(worker=name)
        self._launcher = launcher
        self._backoff = Backoff()
        self._process: ForkServerProcess | None = None
        self._pidfd = -1
        self._started = 0.0
        self._planned: Timer | None = None
        self._asked_to_end = False
        self._hung = False
        Subscription(loop, config.run_dir, state_of(name), self._on_state)

    @property
    def pid(self) -> int:
        """The process id, 0 while there is none."""
        return (self._process.pid or 0) if self._process else 0

    @property
    def ready(self) -> bool:
        state = self.state
        return state is not None and state.pid == self.pid and state.phase == "ready"

    @property
    def uptime(self) -> float:
        return time.monotonic() - self._started if self._process else 0.0

    def start(self) -> None:
        """Start the process now. A failure counts as a life of no length."""
        self._planned = None
        self.state, self._asked_to_end, self._hung = None, False, False
        self._started = self.heard = time.monotonic()
        process = self._launcher.process(self.name, self._config)
        try:
            process.start()
            self._pidfd = os.pidfd_open(process.pid or 0)
        except (OSError, EOFError) as e:
            self.last_error = f"cannot start: {e}"
            self._log.error(self.last_error)
            self._again(0.0)
            return
        self._process = process
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._log.debug("started", pid=process.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if there is one; never to another that has its number."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def restart(self) -> None:
        """End the process without clean-up, and start it again at once."""
        if self._process is None:
            if self._planned is not None:
                self._planned.cancel()
            self.start()
            return
        self._asked_to_end = True
        self.signal(signal.SIGHUP)
        process = self._process
        self._loop.call_later(RESTART_GRACE, lambda: self._insist(process))

    def _insist(self, process: ForkServerProcess) -> None:
        if self._process is process:
            self._log.warn("did not end in time for its restart; killed", pid=self.pid)
            self.signal(signal.SIGKILL)

    def check(self) -> None:
        """Kill the process if it hangs; called about once a second."""
        if self._process is None:
            return
        limit = HANG_LIMIT if self.state is not None else START_LIMIT
        silent = time.monotonic() - self.heard
        if silent > limit:
            self._hung = True
            self.last_error = f"hung: no heartbeat for {silent:.0f} s"
            self._log.error(self.last_error, pid=self.pid)
            self.signal(signal.SIGKILL)
            self.heard = time.monotonic()

    def kill(self) -> None:
        self.wanted = False
        self.signal(signal.SIGKILL)

    def _on_state(self, change: Change[WorkerState]) -> None:
        state = change.upserts.get("state")
        if state is not None and state.pid == self.pid:
            self.state = state
            self.heard = time.monotonic()

    def _on_exit(self) -> None:
        process = self._process
        assert process is not None  # noqa: S101 - the reader is removed with the process
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd, self._process = -1, None
        process.join(1)
        status = process.exitcode
        process.close()
        lived = time.monotonic() - self._started
        if self._asked_to_end or not self.wanted:
            self._log.debug("ended", status=status)
        else:
            how = (
                f"killed by signal {-status}"
                if status is not None and status < 0
                else f"exit status {status}"
            )
            if not self._hung:
                self.last_error = f"ended after {lived:.1f} s: {how}"
            self._log.warn("worker ended", status=status, lived=round(lived, 1))
        self.on_ended(self.name)
        if not self.wanted:
            return
        if status == 2:
            self.last_error = "cannot run; its last message says why"
            self.on_permanent(self.name)
        elif self._asked_to_end:
            self.restarts += 1
            self.start()
        else:
            self.restarts += 1
            self._again(lived)

    def _again(self, lived: float) -> None:
        delay = self._backoff.delay(lived, random.random())  # noqa: S311 - jitter
        self._planned = self._loop.call_later(delay, self._start_planned)

    def _start_planned(self) -> None:
        if self.wanted:
            self.start()
