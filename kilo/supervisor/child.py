"""What runs in a worker's process before, and instead of, the parent's code."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from multiprocessing.connection import Connection
from typing import NoReturn

from kilo.config import Config
from kilo.worker import run

FACTORIES = {
    "watcher": "kilo.watcher.worker:WatcherWorker",
    "mesh": "kilo.mesh.worker:MeshWorker",
    "netctl": "kilo.netctl.worker:NetctlWorker",
    "cni": "kilo.cni.worker:CniWorker",
    "health": "kilo.health.worker:HealthWorker",
}


def run_worker(name: str, config: Config, leash: int | None = None, only_clean_up: bool = False) -> int:
    """Import the code of one worker, and only that, and run it; its exit status."""
    module, _, attribute = FACTORIES[name].partition(":")
    return run(name, getattr(import_module(module), attribute), config, leash, only_clean_up)


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
    leave(run_worker(name, config, leash.fileno()))
