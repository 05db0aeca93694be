"""What runs in a worker's process before, and instead of, the parent's code."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from multiprocessing.connection import Connection
from typing import NoReturn

from kilo.config import Config
from kilo.errors import PermanentError
from kilo.log import Logger, complain
from kilo.model.host import Sandbox
from kilo.sandbox import enter, shown
from kilo.sandbox.profiles import profile_for, with_identity_as_it_is
from kilo.worker import EXIT_PERMANENT, run

FACTORIES = {
    "watcher": "kilo.watcher.worker:WatcherWorker",
    "mesh": "kilo.mesh.worker:MeshWorker",
    "netctl": "kilo.netctl.worker:NetctlWorker",
    "cni": "kilo.cni.worker:CniWorker",
    "health": "kilo.health.worker:HealthWorker",
}


def run_worker(
    name: str,
    config: Config,
    leash: int | None = None,
    only_clean_up: bool = False,
    sandbox: Sandbox | None = None,
) -> int:
    """Import the code of one worker, and only that, and run it; its exit status."""
    module, _, attribute = FACTORIES[name].partition(":")
    return run(name, getattr(import_module(module), attribute), config, leash, only_clean_up, sandbox)


def run_alone(name: str, config: Config) -> int:
    """The same without a parent. Whoever started it gave it its user and its rights; with
    ``--require-sandbox`` it keeps no more of them than it needs."""
    sandbox = None
    if config.require_sandbox:
        try:
            sandbox = give_up_privileges(name, config)
        except PermanentError as e:
            complain(f"kg {name}: {e}")
            return EXIT_PERMANENT
    return run_worker(name, config, sandbox=sandbox)


def give_up_privileges(name: str, config: Config, leash: int | None = None) -> Sandbox:
    """Leave this process with what the worker may have. Raises PermanentError if ``--require-sandbox`` is
    given and something of it cannot be had."""
    profile = profile_for(name, config)
    if leash is None:
        profile = with_identity_as_it_is(profile)
        with contextlib.suppress(OSError):  # it will find that out, and say so
            os.makedirs(os.path.join(config.run_dir, name), exist_ok=True)
    result = enter(profile, () if leash is None else (leash,), config.require_sandbox)
    sandbox = shown(result.status, result.landlock, result.refused)
    if result.refused:
        log = Logger(name, config.log_level)
        log.warn("not all that should be is restricted; kg goes on", refused=list(sandbox.refused))
    return sandbox


def arrive(name: str) -> None:
    """Take the worker's name."""
    with open("/proc/self/comm", "w") as comm:
        comm.write(f"kg-{name}")


def leave(status: int) -> NoReturn:
    """End this process at once: no thread, no exit handler and no output may hold it up."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def main(name: str, config: Config, leash: Connection) -> None:
    """The target of the process that the parent starts."""
    arrive(name)
    try:
        sandbox = give_up_privileges(name, config, leash.fileno())
    except PermanentError as e:
        complain(f"kg {name}: {e}")
        leave(EXIT_PERMANENT)
    leave(run_worker(name, config, leash.fileno(), sandbox=sandbox))
