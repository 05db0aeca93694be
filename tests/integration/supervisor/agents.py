"""A parent whose workers are toys, as a process; and what its tests look at."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from kilo.bus import WORKERS
from kilo.errors import KiloError
from kilo.supervisor.control import Reply, Request, ask
from tests.feeding import PATIENCE
from tests.integration.supervisor.toys import HURRY

TOYS = (sys.executable, "-m", "tests.integration.supervisor.toys")
CLEAN, LEFT = "stopped clean_up=True", "stopped clean_up=False"


class Agent:
    """A running parent, in a process group of its own, and what its toys noted.

    Its output goes to a file, or to ``output``; -1: it is closed. In a ``hurry`` it waits for less long.
    """

    def __init__(
        self,
        home: Path,
        orders: dict[str, str],
        output: int | None = None,
        hurry: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.run_dir, self.home = home / "run", home
        for name, order in orders.items():
            self.order(name, order)
        with (home / "log").open("a") as log:
            command = [*TOYS, str(self.run_dir), str(home)]
            if output == -1:
                command, output = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command], None
            self.process = subprocess.Popen(
                command,
                stdout=log if output is None else output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, HURRY: "1" if hurry else "", **(environment or {})},
            )

    def order(self, name: str, order: str) -> None:
        """What a toy finds when it looks next."""
        path = self.home / f"{name}.new"
        path.write_text(order)
        path.rename(self.home / name)

    @property
    def notes(self) -> list[list[str]]:
        """Time, name and text of what the toys noted."""
        path = self.home / "notes"
        return [line.split(maxsplit=2) for line in path.read_text().splitlines()] if path.exists() else []

    def noted(self, name: str) -> list[str]:
        """What one toy noted."""
        return [what for _, who, what in self.notes if who == name]

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def logged(self, msg: str) -> list[dict[str, Any]]:
        """The lines of the log whose message contains ``msg``."""
        lines = []
        for line in self.log.splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                lines.append(msgspec.json.decode(line, type=dict[str, Any]))
        return [line for line in lines if msg in line["msg"]]

    def ask(self, command: str, worker: str = "", level: str = "") -> Reply:
        return ask(str(self.run_dir), Request(command, worker, level), 30)

    def pids(self) -> dict[str, int]:
        """The processes of the workers that are ready."""
        with contextlib.suppress(KiloError):
            return {w.worker: w.pid for w in self.ask("status").workers if w.state == "ready"}
        return {}

    def all_ready(self) -> dict[str, int]:
        found: dict[str, int] = {}

        def ready() -> bool:
            nonlocal found
            found = self.pids()
            return len(found) == len(WORKERS)

        wait(ready)
        return found

    def terminate(self, number: int = signal.SIGTERM, seconds: float = 25) -> int:
        """Send the parent a signal and wait; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def end(self) -> None:
        """Leave no process behind, whatever state it is in."""
        if self.process.poll() is None:
            pids = below(self.process.pid)
            self.process.kill()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()


def below(root: int) -> list[int]:
    """All descendants of a process."""
    return [pid for child in children(root) for pid in (child, *below(child))]


def children(pid: int) -> list[int]:
    """The children of a process, the eldest first."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def wait(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait for ``condition``; fails after ``seconds``, or ``PATIENCE`` if that is more."""
    end = time.monotonic() + max(seconds, PATIENCE)
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
