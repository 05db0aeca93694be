"""Workers that behave as a file tells them, for the tests of the parent."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from kilo.config import Config
from kilo.errors import PermanentError
from kilo.supervisor.child import arrive, leave
from kilo.worker import Context, run


class Toy:
    """Does what ``state_dir/NAME`` says: nothing, crash, permanent or hang; notes how it ended."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.home = Path(context.config.state_dir)

    def start(self) -> None:
        self.note("started")
        order = self.home / self.context.name
        what = order.read_text() if order.exists() else ""
        if what == "crash":
            os._exit(7)
        if what == "permanent":
            raise PermanentError("the toy is broken")
        if what == "hang":
            self.context.loop.call_later(0.2, lambda: time.sleep(600))
        if what == "stuck-at-end":
            self.context.loop.stop = lambda: None  # type: ignore[method-assign]
        self.context.report.ready()

    def stop(self, clean_up: bool) -> None:
        self.note(f"stopped clean_up={clean_up}")

    def note(self, text: str) -> None:
        with open(self.home / "notes", "a") as notes:
            notes.write(f"{time.monotonic():.3f} {self.context.name} {text}\n")


def main(name: str, config: Config) -> None:
    sentinel = arrive(name)
    leave(run(name, Toy, config, sentinel))


if __name__ == "__main__":
    from kilo.supervisor.parent import Supervisor
    from tests.unit.supervisor import toys

    run_dir, state_dir = sys.argv[1:]
    sys.exit(Supervisor(Config(run_dir=run_dir, state_dir=state_dir), toys.main).run())
