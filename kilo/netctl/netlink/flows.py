"""Messages about the kernel's connection tracking: entries listed, read, and deleted one by one. Pure.

An entry has the addresses of its first packet, and those that an answer to it has; where the two do
not mirror each other, addresses are translated. Source of the format: linux/netfilter/
nfnetlink_conntrack.h. A kernel that does not know a filter (before Linux 5.8, or 5.15 for the
status) lists all: whoever asks has to look at what comes.
"""

from __future__ import annotations

import socket
import struct
from typing import Literal, NamedTuple

from kilo.netctl.netlink.attributes import attribute, nested, parse, u32
from kilo.netctl.netlink.socket import Message, Request

_SUBSYSTEM = 1 << 8
GET, DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2

TCP, UDP = 6, 17
_DCCP, _SCTP = 33, 132
CONNECTIONS = frozenset((TCP, _DCCP, _SCTP))
"""Protocols whose flows have a beginning and an end: one that meets another address ends."""
ANSWERED, SOURCE_TRANSLATED, DESTINATION_TRANSLATED = 1 << 1, 1 << 4, 1 << 5
"""Bits of an entry's status."""

End = Literal["source", "destination"]
Side = Literal["first", "answer"]

_FAMILIES = {0: 0, 4: socket.AF_INET, 6: socket.AF_INET6}
_HEADER = struct.Struct("=BBH")
_LENGTH = struct.Struct("=H")
_STATUS = struct.Struct(">I")
_FIRST, _ANSWER, _STATUS_IS, _ID, _ZONE, _FILTER, _STATUS_OF = 1, 2, 3, 12, 18, 25, 26
_ADDRESSES, _PROTOCOL = 1, 2
_NUMBER = 1
_SIDES: dict[Side, tuple[int, int]] = {"first": (_FIRST, 1), "answer": (_ANSWER, 2)}
"""The attribute with the addresses, and that of the filter's flags."""
_BY: dict[End, int] = {"source": 1, "destination": 2}
_BY_PROTOCOL = 8
_V4_AT: dict[End, int] = {"source": 1, "destination": 2}


class Flow(NamedTuple):
    """An entry, with the message that it was read from. Addresses in network order."""

    protocol: int
    source: bytes
    destination: bytes
    answer_source: bytes
    answer_destination: bytes
    status: int
    message: Message

    @property
    def answered(self) -> bool:
        return bool(self.status & ANSWERED)

    @property
    def source_translated(self) -> bool:
        return self.answer_destination != self.source

    @property
    def destination_translated(self) -> bool:
        return self.answer_source != self.destination


def list_flows(version: int = 0, protocol: int = 0, status: int = 0, mask: int = 0) -> bytes:
    """The body of GET for the entries of an IP version (0: both) whose status is as given under ``mask``.

    ``protocol`` 0 is any; another needs a version.
    """
    body = _header(version)
    if protocol:
        number = nested(_PROTOCOL, attribute(_NUMBER, bytes((protocol,))))
        body += nested(_FIRST, number) + nested(_FILTER, u32(_SIDES["first"][1], _BY_PROTOCOL))
    if mask:
        body += attribute(_STATUS_IS, _STATUS.pack(status)) + attribute(_STATUS_OF, _STATUS.pack(mask))
    return body


def list_address(address: bytes, side: Side, end: End) -> bytes:
    """The body of GET for the entries with this IPv4 address at one end of one side.

    There is none for IPv6: asked for an address, the kernel (up to 6.18) lists all that lack it.
    """
    kind, flags = _SIDES[side]
    addresses = nested(_ADDRESSES, attribute(_V4_AT[end], address))
    return _header(4) + nested(kind, addresses) + nested(_FILTER, u32(flags, _BY[end]))


def parse_flow(message: Message) -> Flow:
    return _usual(message) or _any(message)


def is_zoned(flow: Flow) -> bool:
    """Whether the entry is of a zone: of others, who keep their own books."""
    message = flow.message
    zone = parse(message.data, message.start + _HEADER.size, message.end).get(_ZONE, b"")
    return bool(zone.strip(b"\0"))


def delete_flow(flow: Flow) -> Request:
    """It goes only if it is the same entry still; one that is gone is an error, ENOENT."""
    message = flow.message
    found = parse(message.data, message.start + _HEADER.size, message.end)
    body = bytes((message.data[message.start], 0, 0, 0)) + nested(_FIRST, found[_FIRST])
    for kind in (_ID, _ZONE):
        if kind in found:
            body += attribute(kind, found[kind])
    return Request(DELETE, 0, body)


def _header(version: int) -> bytes:
    return _HEADER.pack(_FAMILIES[version], 0, 0)


class _Frame(NamedTuple):
    """How the kernel frames one side of an entry, from the attribute's value on; offsets in bytes."""

    before: bytes
    between: bytes
    size: int

    def ends(self, data: bytes, at: int) -> tuple[bytes, bytes] | None:
        """Source and destination, if the frame fits."""
        middle = at + 8 + self.size
        if data[at : at + 8] != self.before or data[middle : middle + 4] != self.between:
            return None
        return data[at + 8 : middle], data[middle + 4 : middle + 4 + self.size]


_NESTED = 0x8000
_HEAD = struct.Struct("=HH").pack
_FRAMES: dict[int, _Frame] = {
    socket.AF_INET: _Frame(_HEAD(20, _ADDRESSES | _NESTED) + _HEAD(8, 1), _HEAD(8, 2), 4),
    socket.AF_INET6: _Frame(_HEAD(44, _ADDRESSES | _NESTED) + _HEAD(20, 3), _HEAD(20, 4), 16),
}
_STATUS_HEAD = _HEAD(8, _STATUS_IS)


def _usual(message: Message) -> Flow | None:
    """An entry as kernels lay it out, by offsets: a fifth of the time; None if this one differs."""
    data = message.data
    frame = _FRAMES.get(data[message.start])
    first = message.start + _HEADER.size
    if frame is None:
        return None
    ends = frame.ends(data, first + 4)
    answer = first + _LENGTH.unpack_from(data, first)[0]
    answer_ends = frame.ends(data, answer + 4)
    if ends is None or answer_ends is None:
        return None
    at = answer + _LENGTH.unpack_from(data, answer)[0]
    if data[at : at + 4] != _STATUS_HEAD:
        return None
    protocol = data[first + 4 + 12 + 2 * frame.size + 4 + 4]
    (status,) = _STATUS.unpack_from(data, at + 4)
    return Flow(protocol, ends[0], ends[1], answer_ends[0], answer_ends[1], status, message)


def _any(message: Message) -> Flow:
    found = parse(message.data, message.start + _HEADER.size, message.end)
    source, destination, protocol = _ends(found.get(_FIRST, b""))
    answer_source, answer_destination, _ = _ends(found.get(_ANSWER, b""))
    status = _STATUS.unpack(found[_STATUS_IS])[0] if _STATUS_IS in found else 0
    return Flow(protocol, source, destination, answer_source, answer_destination, status, message)


def _ends(block: bytes) -> tuple[bytes, bytes, int]:
    """Source, destination and protocol of one side."""
    found = parse(block, 0, len(block))
    where, what = found.get(_ADDRESSES, b""), found.get(_PROTOCOL, b"")
    addresses = parse(where, 0, len(where))
    protocol = parse(what, 0, len(what)).get(_NUMBER, b"\0")[0]
    if 1 in addresses:
        return addresses[1], addresses.get(2, b""), protocol
    return addresses.get(3, b""), addresses.get(4, b""), protocol
