"""What runs in a worker's process before, and instead of, the parent's code."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from typing import NoReturn

from kilo.config import Config
from kilo.errors import PermanentError
from kilo.log import Logger, complain
from kilo.sandbox import Confined, Places, enter, shown
from kilo.sandbox.profile import Profile, with_identity_as_it_is, without_files
from kilo.sandbox.profiles import closed_code, profile_for
from kilo.worker import EXIT_PERMANENT, EXIT_UNLOADED, run

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
    confined: Confined | None = None,
) -> int:
    """Import the code of one worker, and only that, and run it; its exit status."""
    module, _, attribute = FACTORIES[name].partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, PermissionError) as e:
        Logger(name, config.log_level).error(f"cannot load its code: {e}")
        return EXIT_UNLOADED
    return run(name, factory, config, leash, only_clean_up, confined)


def tell_closed(config: Config, log: Logger) -> None:
    """Say at the start which code workers will not be able to load."""
    if closed := closed_code(config):
        log.warn("on Python's path, but closed to workers by --sandbox=full", paths=list(closed))


def run_alone(name: str, config: Config) -> int:
    """The same without a parent. Whoever started it gave it its user and its rights; with
    ``--require-sandbox`` it keeps no more of them than it needs."""
    confined = None
    if config.require_sandbox:
        tell_closed(config, Logger(name, config.log_level))
        try:
            with contextlib.suppress(OSError):  # it will find that out, and say so
                os.makedirs(os.path.join(config.run_dir, name), exist_ok=True)
            profile = replace(with_identity_as_it_is(profile_for(name, config)), home="")
            confined = give_up_privileges(config, profile, ())
        except PermanentError as e:
            complain(f"kg {name}: {e}")
            return EXIT_PERMANENT
    return run_worker(name, config, confined=confined)


def give_up_privileges(config: Config, profile: Profile, keep: tuple[int, ...]) -> Confined | None:
    """Leave this process with what the worker may have, as ``--sandbox`` says, and the descriptors ``keep``.

    Raises PermanentError if ``--require-sandbox`` is given and something of it cannot be had.
    """
    if config.sandbox == "off":
        return None
    if config.sandbox == "capabilities":
        profile = without_files(profile)
    result = enter(profile, keep, config.require_sandbox)
    told = shown(result.status, result.landlock, result.refused)
    rules = profile.rules if result.landlock else ()  # without rules in force any path will do
    return Confined(told, Places(rules, profile.reach, profile.named))


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
        confined = give_up_privileges(config, profile_for(name, config), (leash.fileno(),))
    except PermanentError as e:
        complain(f"kg {name}: {e}")
        leave(EXIT_PERMANENT)
    leave(run_worker(name, config, leash.fileno(), confined=confined))
