"""How the agent ends: stage by stage, so that each worker finds what its clean-up needs, within 20 s.

A worker that has something to clean up and is not there, or ended without having done it, is started
once for its clean-up alone. Whatever is left behind all the same is said, and is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from kilo.bus import Loop, Timer
from kilo.leash import END, HOLD, QUIT
from kilo.log import Logger
from kilo.model.workers import CLEANERS
from kilo.supervisor.process import WorkerProcess

STAGES = (("watcher", "cni"), ("netctl",), ("mesh", "health"))
"""The annotations go first, so that others stop sending; then the kernel's state; then the rest."""
LIMITS = (7.0, 9.0, 2.0)
"""Seconds for each of STAGES, 18 in all; then what is left of it is killed."""
DEATH = 0.5
"""Seconds that a killed process has to vanish; one that the kernel holds is not waited for."""


class Ending:
    """Ends ``workers``, then stops the loop. ``failed``: not all was cleaned up that should have been."""

    def __init__(self, workers: Mapping[str, WorkerProcess], loop: Loop, log: Logger, clean_up: bool) -> None:
        self.begun = False
        self.failed = False
        self._workers = workers
        self._loop = loop
        self._log = log
        self._may_clean_up = clean_up
        self._cleans_up = False
        self._order = END
        self._stage = -1
        self._deadline: Timer | None = None
        self._late = False
        self._again: set[str] = set()
        self._given_up: set[str] = set()

    def begin(self, order: bytes) -> None:
        """End all, by END or QUIT. The first call counts.

        An agent whose work another one does made nothing here, and has nothing to clean up.
        """
        if self.begun:
            return
        self.begun = True
        if any(worker.taken for worker in self._workers.values()):
            self._log.warn("another agent has this host: nothing of it is cleaned up")
            order = QUIT
        self._order = order
        self._cleans_up = self._may_clean_up and order == END
        for worker in self._workers.values():
            worker.end(HOLD)
        self._next()

    def hurry(self) -> None:
        """Kill what is left, and stop as soon as that is gone."""
        self.failed = True
        for stage in STAGES[self._stage :]:
            self._give_up(stage)
        self._stage = len(STAGES)
        for worker in self._workers.values():
            worker.kill()
        self._wait(DEATH, self._loop.stop)
        self._loop.call_soon(self._look)

    def on_ended(self, name: str) -> None:
        """A process has ended, or could not be started."""
        if self.begun:
            self._loop.call_soon(self._look)

    def _next(self) -> None:
        self._stage += 1
        self._late = False
        if self._stage < len(STAGES):
            self._wait(LIMITS[self._stage], self._kill)
            for name in STAGES[self._stage]:
                self._workers[name].end(self._order)
        else:  # one that the kernel does not let go of is not waited for
            self._wait(DEATH, self._loop.stop)
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        """What the workers of this stage have come to; on to the next when all have ended."""
        if self._stage == len(STAGES):
            if not any(worker.pid for worker in self._workers.values()):
                self._loop.stop()
            return
        stage = STAGES[self._stage]
        for name in stage:
            if not self._workers[name].pid and self._has_to_clean(name):
                self._clean_up_after(name)
        if not any(self._workers[name].pid for name in stage):
            self._next()

    def _has_to_clean(self, name: str) -> bool:
        done = self._workers[name].cleaned or name in self._given_up
        return self._cleans_up and name in CLEANERS and not done

    def _clean_up_after(self, name: str) -> None:
        """Start a worker for its clean-up alone, once."""
        if self._late or name in self._again:
            self._give_up([name])
        else:
            self._again.add(name)
            self._log.warn("not there to clean up; started once more for that alone", worker=name)
            self._workers[name].start(END)

    def _give_up(self, names: Iterable[str]) -> None:
        for name in names:
            if self._has_to_clean(name):
                self.failed = True
                self._given_up.add(name)
                self._log.error(
                    "not cleaned up; the next start takes over what is left, or removes it",
                    worker=name,
                    may_be_left=CLEANERS[name],
                )

    def _kill(self) -> None:
        """This stage's time is over."""
        self._late = True
        stage = STAGES[self._stage]
        for name in stage:
            if self._workers[name].pid:
                self._log.error("worker did not end in time; killed", worker=name)
                self._workers[name].kill()
        self._give_up(stage)
        self._wait(DEATH, self._next)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, then)
