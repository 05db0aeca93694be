"""WireGuard keys. Public keys are plain base64 text; secrets have types that print as ``***``."""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache

from kilo.errors import ProtocolError

KEY_BYTES = 32
ZERO = base64.b64encode(bytes(KEY_BYTES)).decode()


@lru_cache(1 << 14)
def canonical_key(text: str) -> str:
    """A 32-byte key in base64, as wg(8) prints it. Raises ProtocolError; never quotes the text.

    Line ends and loose bits at the end are overlooked, as every Go agent overlooks them.
    """
    try:
        raw = base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError) as e:
        raise ProtocolError("not base64") from e
    if len(raw) != KEY_BYTES:
        raise ProtocolError(f"{len(raw)} bytes long, not {KEY_BYTES}")
    return base64.b64encode(raw).decode()


class PresharedKey:
    """A preshared key on its way from a Peer to netctl: base64 in ``value``, ``***`` everywhere else.

    Not a struct on purpose: encoders do not know it, so that a log or a page that is handed one by
    mistake shows ``***``. The bus alone has a hook that carries the value (kilo.bus.wire).
    """

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PresharedKey) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__
