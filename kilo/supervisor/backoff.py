"""How long to wait before a worker is started again. Pure: time comes in as an argument."""

from __future__ import annotations

FIRST = 0.1
LIMIT = 30.0
HEALTHY_AFTER = 60.0
JITTER = 0.5


class Backoff:
    """Doubles from FIRST to LIMIT seconds, with up to half of it as jitter; a minute of health resets it."""

    def __init__(self) -> None:
        self._failures = 0

    def delay(self, lived: float, chance: float) -> float:
        """Seconds to wait after a life of ``lived`` seconds; ``chance`` is random, in [0, 1)."""
        if lived >= HEALTHY_AFTER:
            self._failures = 0
        base = min(LIMIT, FIRST * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return float(base * (1 - JITTER * chance))
