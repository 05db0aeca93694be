"""The end when a process does not even die when killed, as one that the kernel holds; none can be made
here, so that the workers are stand-ins."""

from __future__ import annotations

from typing import cast

import pytest

from kilo.bus import WORKERS, Loop
from kilo.leash import END, HOLD
from kilo.log import Logger
from kilo.supervisor import ending
from kilo.supervisor.process import WorkerProcess
from tests.clock import Given


class Held:
    """What ``Ending`` sees of a worker; one in ``held`` stays whatever is done to it."""

    def __init__(self, name: str, held: bool) -> None:
        self.pid = 1000
        self.cleaned = self.taken = False
        self.told: list[bytes] = []
        self.killed = False
        self._name = name
        self._held = held

    def end(self, order: bytes) -> None:
        self.told.append(order)
        if order != HOLD and not self._held:
            self.pid, self.cleaned = 0, True

    def kill(self) -> None:
        self.killed = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "LIMITS", (0.2, 0.2, 0.2))
    monkeypatch.setattr(ending, "DEATH", 0.1)


@pytest.mark.timing
@pytest.mark.parametrize("held", [*WORKERS, "all"])
def test_one_that_the_kernel_does_not_let_go_of_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    loop = Loop()
    workers = {name: Held(name, held in (name, "all")) for name in WORKERS}
    end = ending.Ending(cast(dict[str, WorkerProcess], workers), loop, Logger("parent", "none"), True)
    stopped: list[float] = []
    stop = loop.stop

    def note_and_stop() -> None:
        stopped.append(clock.seconds)
        stop()

    monkeypatch.setattr(loop, "stop", note_and_stop)
    end.begin(END)
    with Given() as clock:
        loop.run_for(20.0)
    loop.close()
    assert stopped, "it ended by itself"
    assert stopped[0] < 1.2
    assert all(worker.told == [HOLD, END] for worker in workers.values())
    assert [name for name, worker in workers.items() if worker.killed] == [
        name for name in WORKERS if held in (name, "all")
    ]
    assert end.failed == (held in ("watcher", "netctl", "all"))
