"""WireGuard keys. Public keys are plain base64 text; secrets have types that print as ``***``."""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache

import msgspec

from kilo.errors import ProtocolError

KEY_BYTES = 32
ZERO = base64.b64encode(bytes(KEY_BYTES)).decode()


@lru_cache(1 << 14)
def canonical_key(text: str) -> str:
    """A 32-byte key in base64, as wg(8) prints it. Raises ProtocolError; never quotes the text."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise ProtocolError("not base64") from e
    if len(raw) != KEY_BYTES:
        raise ProtocolError(f"{len(raw)} bytes long, not {KEY_BYTES}")
    return base64.b64encode(raw).decode()


class PresharedKey(msgspec.Struct, frozen=True, gc=False):
    """A preshared key on its way from a Peer to netctl. Prints as ``***`` everywhere."""

    value: str

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__
