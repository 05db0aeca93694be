"""Netlink attributes: length, type, value, padded to four bytes. Pure."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from functools import lru_cache

from kilo.errors import ProtocolError

_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
U16 = struct.Struct("=H")
U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def u32(kind: int, value: int) -> bytes:
    """An attribute that holds a 32-bit number."""
    return _ATTRIBUTE.pack(8, kind) + U32.pack(value)


def text(kind: int, value: str) -> bytes:
    """An attribute that holds text, ended by a zero."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def walk(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The attributes in ``data[start:end]``: type, and where the value starts and ends."""
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > end:
            return
        yield kind & _TYPE_MASK, start + 4, start + length
        start += length + 3 & ~3


def parse(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """The attributes in ``data[start:end]`` by type; of two of one type, the last."""
    found = {}
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > end:
            break
        found[kind & _TYPE_MASK] = data[start + 4 : start + length]
        start += length + 3 & ~3
    return found


def as_text(value: bytes) -> str:
    """The text of an attribute that is ended by a zero."""
    return value.rstrip(b"\0").decode(errors="replace")


@lru_cache(1 << 16)
def pack_ip(ip: str) -> tuple[int, bytes]:
    """Address family and bytes of an address. Raises ProtocolError."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        return family, socket.inet_pton(family, ip)
    except OSError as e:
        raise ProtocolError(f"{ip!r} is not an IP address") from e


@lru_cache(1 << 16)
def ip_text(raw: bytes) -> str:
    """The text of an address of 4 or 16 bytes."""
    return socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw)
