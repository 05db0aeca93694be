"""Whether the way to the API server is to be kept out of the tunnel for a while. Pure.

A tunnel that answers handshakes can still lose what is sent through it to the API server. While
that is away, one tries without: if it comes back meanwhile, the tunnel is to blame and is avoided
for a time that doubles; if not, the tunnel is given back, for most outages are the server's own.
"""

from __future__ import annotations

SUSPECT_AFTER = 60.0
"""s without the API until a try."""
TRY_FOR = 45.0
"""s; longer than the pauses of a client that retries."""
TRY_AGAIN_AFTER = 300.0
BLAME_FIRST, BLAME_LIMIT = 600.0, 3600.0
"""s for which a tunnel is avoided that was to blame: the first time, and at most."""


class Detour:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self.avoiding = False
        self._reachable = True
        self._until = float("inf")
        """When ``avoiding`` is to end, or else, without the API, when it is to begin."""
        self._blame = BLAME_FIRST
        self._blamed = False

    @property
    def active(self) -> bool:
        """Whether time can change anything."""
        return self._until != float("inf")

    @property
    def why(self) -> str:
        """The rest of a sentence about the API server."""
        return "was lost through it" if self._blamed else "cannot be reached: trying without"

    def heard(self, reachable: bool, now: float) -> None:
        """The API can be reached, or not."""
        if reachable == self._reachable:
            return
        self._reachable = reachable
        if not self.avoiding:
            self._until = float("inf") if reachable else now + SUSPECT_AFTER
        elif reachable:
            self._blamed = True
            self._until = now + self._blame
            self._blame = min(self._blame * 2, BLAME_LIMIT)

    def tick(self, now: float) -> bool:
        """Whether ``avoiding`` changed."""
        if now < self._until:
            return False
        self.avoiding = not self.avoiding
        self._blamed = False
        if self.avoiding:
            self._until = now + TRY_FOR
        else:
            self._until = float("inf") if self._reachable else now + TRY_AGAIN_AFTER
        return True
