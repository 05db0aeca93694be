"""``kg cleanup``: takes away what the agent left on this host and on its Node, as an uninstall does.

Each worker is started for its clean-up alone, here and one after the other: the annotations go first,
so that the others send nothing here any more. Refused while the agent runs.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from importlib import import_module

import msgspec

from kilo.config import Config
from kilo.leash import END
from kilo.log import complain
from kilo.supervisor.child import FACTORIES
from kilo.worker import Context, Worker, run

ORDER = ("watcher", "netctl")
"""Those that have something to clean up."""


def main(config: Config, workers: Sequence[str]) -> int:
    """Clean up after ``workers``, by default after all; 1 if something may be left."""
    config = msgspec.structs.replace(config, clean_up=True, clean_up_interface=True)
    results = [clean_up(name, config) for name in ORDER if name in (workers or ORDER)]
    return int(any(results))


def clean_up(name: str, config: Config) -> int:
    """Let one worker clean up; its exit status, and 1 if it says that something is left."""
    module, _, attribute = FACTORIES[name].partition(":")
    made: list[Worker] = []

    def factory(context: Context) -> Worker:
        made.append(getattr(import_module(module), attribute)(context))
        return made[0]

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(END)
        status = run(name, factory, config, theirs.fileno())
    left = getattr(made[0], "left", "") if made else ""
    if left:
        complain(f"kg cleanup: {name}: {left}")
    return status or int(bool(left))
