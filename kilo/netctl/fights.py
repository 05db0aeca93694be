"""Somebody else who undoes what we do: noticed, and no longer raced. Pure: times are arguments.

An object that was repaired MANY times within WINDOW seconds is fought over. From then on it is
repaired 1, 2, 4 … 60 seconds after the repair before, until it has been left alone for a while, or
nobody asks for its repair any more: it is no longer wanted, say, or its device is gone.
Reconcilers ask and tell; kilo.netctl.passes says it to people.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

MANY = 10
WINDOW = 60.0
FIRST, LIMIT = 1.0, 60.0
CALM = 30.0
"""Seconds without anything to repair, and without a repair, after which a fight is over."""
_REMEMBERED = 10_000
"""Objects of which repairs are remembered, before those that were long ago are forgotten."""


@dataclass
class _Object:
    """Times of repairs; while it is fought over, ``wait`` is the time between two, in seconds.

    ``asked``: when a repair was asked for last, for as long as it has not been made.
    """

    repairs: deque[float] = field(default_factory=lambda: deque(maxlen=MANY))
    wait: float = 0.0
    asked: float = float("-inf")


class Fights:
    """Objects by key, which is that of their outcomes. All times are in seconds of one clock."""

    def __init__(self, calm: float = CALM) -> None:
        self.calm = calm
        self._objects: dict[str, _Object] = {}

    def may_repair(self, key: str, now: float) -> bool:
        """Whether ``key``, which somebody has changed, may be put right now."""
        found = self._objects.get(key)
        if found is None or not found.wait:
            return True
        found.asked = now
        return now >= found.repairs[-1] + found.wait

    def repaired(self, key: str, now: float) -> None:
        """``key`` was put right after somebody had changed it."""
        if len(self._objects) >= _REMEMBERED and key not in self._objects:
            self._forget(now)
        found = self._objects.setdefault(key, _Object())
        found.repairs.append(now)
        found.asked = float("-inf")
        if found.wait:
            found.wait = min(found.wait * 2, LIMIT)
        elif len(found.repairs) == MANY and now - found.repairs[0] <= WINDOW:
            found.wait = FIRST

    def going_on(self, now: float) -> set[str]:
        """What is fought over. What has been left alone for ``calm`` seconds no longer is, nor that of
        which the repair was asked for, and is no more for so long and LIMIT: what it depends on, as a
        route does on its link, may be fought over itself and be away for as long as that.
        """
        fought = {key: found for key, found in self._objects.items() if found.wait}
        for key, found in fought.items():
            patience = self.calm if found.asked < found.repairs[-1] else self.calm + LIMIT
            if now - max(found.repairs[-1], found.asked) >= patience:
                del self._objects[key]
        return fought.keys() & self._objects.keys()

    def lost(self, key: str, since: float) -> bool:
        """Whether ``key`` is not as it should be, because a repair of it would only be undone.

        ``since``: when those who would repair it began to look; who has not asked has no need to.
        """
        found = self._objects.get(key)
        return found is not None and bool(found.wait) and found.asked >= since

    def _forget(self, now: float) -> None:
        old = [
            key for key, found in self._objects.items() if not found.wait and now - found.repairs[-1] > WINDOW
        ]
        for key in old:
            del self._objects[key]
