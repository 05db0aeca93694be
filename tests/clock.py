"""Time as the machine gave it: for upper bounds on how long something took."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType

STEP, MOST = 0.005, 0.03
STRICT = "KILO_STRICT_BOUNDS" in os.environ
"""Set by ``make bench``, which runs the tests marked ``timing`` alone, one after the other."""
SLACK, LEAST = 10.0, 15.0


def bound(seconds: float) -> float:
    """The most seconds that something may take: ``seconds`` where bounds are strict.

    Elsewhere other tests run beside this one, on a machine of any speed. There the bound is one that only a
    fault exceeds: ``SLACK`` times as long, and ``LEAST`` seconds at least.
    """
    return seconds if STRICT else max(seconds * SLACK, LEAST)


class Given:
    """``seconds`` that have passed since it was entered, without those in which all stood still.

    Where a machine is itself a guest, its host may stop it for a moment; such a moment, of whatever length,
    counts for ``MOST`` seconds. What one program waits for, or computes, counts in full: the clock is a
    thread that does nothing but look at the time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> Given:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _count(self) -> None:
        last = time.monotonic()
        while not self._over.wait(STEP):
            now = time.monotonic()
            self.seconds += min(now - last, MOST)
            last = now
