"""What runs in a worker's process before, and instead of, the parent's code."""

from __future__ import annotations

import multiprocessing
import os
import sys
from importlib import import_module
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


def run_worker(name: str, config: Config, parent_alive: int | None = None) -> int:
    """Import the code of one worker, and only that, and run it; its exit status."""
    module, _, attribute = FACTORIES[name].partition(":")
    return run(name, getattr(import_module(module), attribute), config, parent_alive)


def arrive(name: str) -> int | None:
    """Take the worker's name; the descriptor that becomes readable when the parent is gone."""
    with open("/proc/self/comm", "w") as comm:
        comm.write(f"kg-{name}")
    parent = multiprocessing.parent_process()
    return None if parent is None else parent.sentinel


def leave(status: int) -> NoReturn:
    """End this process at once: no thread and no exit handler may hold it up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(name: str, config: Config) -> None:
    """The target of the process that the parent starts."""
    sentinel = arrive(name)
    leave(run_worker(name, config, sentinel))
