"""Workers that behave as a file tells them, for the tests of the parent.

``python -m tests.integration.supervisor.toys RUN_DIR HOME`` is a parent with five of them;
with a NAME after that, one of them alone.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from kilo.config import Config
from kilo.errors import PermanentError, TakenError
from kilo.model.readiness import APPLIED
from kilo.supervisor.child import arrive, leave
from kilo.worker import Context, run

HURRY = "TOYS_HURRY"
"""In the environment: the parent's patience is a tenth of what it is, or some more."""
TALK = 3000


def orders(home: Path, name: str) -> set[str]:
    """The words in ``home/name``, which may change while a toy lives."""
    path = home / name
    return set(path.read_text().split()) if path.exists() else set()


def hurried(limits: Sequence[float]) -> tuple[float, ...]:
    """What its patience is at the end, then: those who end as they should have the time to."""
    return tuple(max(0.7, seconds / 10) for seconds in limits)


class Toy:
    """Notes how it starts and ends, and does what it is told: see ``start``, ``stop`` and ``main``."""

    leash = -1

    def __init__(self, context: Context) -> None:
        self.context = context
        self.home = Path(context.config.state_dir)
        if "taken" in self.orders:
            raise TakenError("another toy does this")

    @property
    def orders(self) -> set[str]:
        return orders(self.home, self.context.name)

    def start(self) -> None:
        self.note("started")
        what = self.orders
        if "slow-at-start" in what:
            time.sleep(2.5)
        if "crash" in what:
            os._exit(7)
        if "permanent" in what:
            raise PermanentError("the toy is broken")
        if "hang" in what:
            self.context.loop.call_later(0.2, lambda: time.sleep(600))
        if "stuck-at-end" in what:
            self.context.loop.stop = lambda: None  # type: ignore[method-assign]
        if "give" in what:
            self.give()
        if "talk" in what:
            self.talk()
        if "debug" in what:
            self.context.loop.call_every(0.1, lambda: self.context.log.debug("a detail"))
        if "chatter" in what:
            self.context.loop.call_every(0.1, self.talk)
        if self.context.name == "netctl":
            self.context.report.gauges[APPLIED] = 1
        if "never-ready" not in what:
            self.context.report.ready()

    def give(self) -> None:
        """Send the parent a descriptor."""
        with socket.fromfd(self.leash, socket.AF_UNIX, socket.SOCK_STREAM) as end:
            try:
                socket.send_fds(end, [b"?"], [0])
                self.note("taken")
            except PermissionError:
                self.note("refused")

    def talk(self) -> None:
        for number in range(TALK):
            self.context.log.info("talking " + 200 * "x", number=number)

    def stop(self, clean_up: bool) -> None:
        if "crash-at-end" in self.orders:
            self.note("crashed")
            os._exit(7)
        if "slow-at-end" in self.orders:
            self.note("stopping")
            time.sleep(30)
        self.note(f"stopped clean_up={clean_up}")

    def note(self, text: str) -> None:
        with open(self.home / "notes", "a") as notes:
            notes.write(f"{time.monotonic():.3f} {self.context.name} {text}\n")


def main(name: str, config: Config, leash: Connection) -> None:
    """What the parent starts."""
    arrive(name)
    if "slow" in orders(Path(config.state_dir), name):
        time.sleep(1)  # as if it had much code to load
    Toy.leash = leash.fileno()
    leave(run(name, Toy, config, Toy.leash))


def program(run_dir: str, home: str, name: str = "") -> int:
    """The parent, or one worker alone, as the command line starts them."""
    from kilo.cli.main import hold_signals
    from kilo.log import own_outputs
    from kilo.supervisor import ending, parent, process
    from tests.integration.supervisor import toys

    config = Config(run_dir=run_dir, state_dir=home)
    if os.environ.get(HURRY):
        ending.LIMITS = toys.hurried(ending.LIMITS)  # type: ignore[assignment]
        ending.DEATH /= 10
        process.HANG_LIMIT /= 5
        process.RESTART_GRACE /= 5
        parent.WAITS_AT_MOST /= 5
    hold_signals()
    if name:
        own_outputs()
        return run(name, toys.Toy, config)
    return parent.main(config, toys.main)


if __name__ == "__main__":
    sys.exit(program(*sys.argv[1:]))
