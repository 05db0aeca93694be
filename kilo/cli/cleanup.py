"""``kg cleanup``: takes away what the agent left on this host and on its Node, as an uninstall does.

Each worker that has something to clean up is run for that alone, here and one after the other: the
annotations go first, so that the others send nothing here any more. Refused while an agent runs here,
whatever its ``--run-dir``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kilo.config import Config
from kilo.errors import TemporaryError
from kilo.log import Logger, complain
from kilo.model.workers import CLEANERS
from kilo.netctl.sole import Claim
from kilo.supervisor.child import run_worker


def main(config: Config, workers: Sequence[str]) -> int:
    """Clean up after ``workers``, by default after all; 1 if something may be left."""
    config = msgspec.structs.replace(config, clean_up=True, clean_up_interface=True)
    try:
        Claim(config.interface, Logger("cleanup", config.log_level), patience=0).close()
    except TemporaryError as e:
        complain(f"kg cleanup: {e}")
        return 1
    names = [name for name in CLEANERS if name in (workers or CLEANERS)]
    statuses = [run_worker(name, config, only_clean_up=True) for name in names]
    return int(any(statuses))
