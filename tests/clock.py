"""Time as the machine gave it: for upper bounds on what took how long."""

from __future__ import annotations

import threading
import time
from types import TracebackType

STEP, MOST = 0.005, 0.03


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
