"""With what a request says who asks, for the error message where the server does not accept it. Pure.

The dates are what a token or certificate says of itself; nothing here verifies them, and nothing but messages
depends on them. Used by kilo.watcher.session and client.
"""

from __future__ import annotations

import base64
import json
import math
from contextlib import suppress
from dataclasses import dataclass, field

from kilo.errors import ProtocolError
from kilo.watcher.x509 import decode_pem, shown_time


@dataclass(frozen=True)
class Identity:
    """``source``: what it is and where it comes from, "" for none. ``user``: of whom, for a person."""

    user: str
    source: str = ""
    authorization: str = field(default="", repr=False)
    certificate: bytes = field(default=b"", repr=False)

    def refused(self, now: float) -> str:
        """Why the server says 401; ``now`` in Unix s, by its clock."""
        if not self.source:
            return f"the request has no credentials, since {self.user} has none"
        ends = self._ends()
        expired = f", which expired at {shown_time(ends)}" if ends is not None and ends <= now else ""
        return f"the server does not accept {self.source}{expired}"

    def mend(self, now: float) -> str:
        """What to do about that."""
        if not self.source:
            return "give a token or a client certificate, in a kubeconfig"
        ends = self._ends()
        if ends is not None and ends <= now:
            return "renew it there, and see why it was not renewed"
        return "give one that this cluster has issued and still accepts"

    def _ends(self) -> float | None:
        """In Unix s, None if it does not say."""
        if self.authorization:
            return expiry_of(self.authorization)
        with suppress(ProtocolError):
            return decode_pem(self.certificate).ends
        return None


def expiry_of(authorization: str) -> float | None:
    """When a token ends that is a JWT, by its ``exp`` (Unix s); None for any other."""
    parts = authorization.removeprefix("Bearer ").split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    ends = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(ends, bool) or not isinstance(ends, int | float) or not math.isfinite(ends):
        return None
    return float(ends) if 0 <= ends < 1 << 37 else None
