"""Which plan the kernel has, and since when it lacks something: what readiness is judged by. Pure.

A plan that comes while another is applied makes nobody late: what counts is the oldest news that
has not been applied. An object that drifts and cannot be repaired costs itself alone; what stops
the whole data plane counts whatever the plan. Fed by kilo.netctl.worker; times in Unix seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from kilo.model.host import Failure
from kilo.netctl.failures import stopped_by

_REMEMBERED = 100


class Progress:
    """``applied``: the generation of the plan that the kernel has, None for none.

    ``why``: what stops the whole data plane now, "" if nothing does.
    """

    def __init__(self) -> None:
        self.applied: int | None = None
        self.why = ""
        self._stopped_at = 0.0
        self._planned: int | None = None
        self._count = 0
        self._taken: tuple[int, int | None] = 0, None
        self._waiting: deque[tuple[int, float]] = deque()
        """Plans that have not been applied: the how manieth each is, and when it was heard of."""

    @property
    def since(self) -> float:
        """Since when something is missing, 0 if nothing is."""
        times = [self._stopped_at] if self.why else []
        times += [time for _, time in list(self._waiting)[:1]]
        return min(times, default=0.0)

    def heard(self, generation: int, now: float) -> None:
        """The plan is this one from now on."""
        self._planned = generation
        self._count += 1
        if len(self._waiting) == _REMEMBERED:
            self._waiting.pop()
        self._waiting.append((self._count, now))

    def taken(self) -> None:
        """A pass begins, with the plan that was heard of last."""
        self._taken = self._count, self._planned

    def ended(self, settled: bool, failing: Mapping[str, Failure], now: float) -> None:
        """A pass has ended: whether the kernel is as planned, and what does not work."""
        self.why = stopped_by(failing)
        if not self.why:
            self._stopped_at = 0.0
        elif not self._stopped_at:
            self._stopped_at = now
        if settled and not self.why:
            count, self.applied = self._taken
            while self._waiting and self._waiting[0][0] <= count:
                self._waiting.popleft()

    def write(self, gauges: dict[str, float], info: dict[str, str]) -> None:
        """What others are told of this."""
        info.pop("stopped", None)
        if self.why:
            info["stopped"] = self.why
        gauges["unapplied_since"] = self.since
        for name, value in (("planned_generation", self._planned), ("applied_generation", self.applied)):
            if value is None:
                gauges.pop(name, None)
            else:
                gauges[name] = value
