"""Generic netlink: the number of a family, and the header that its messages carry."""

from __future__ import annotations

import struct

from kilo.netctl.netlink.attributes import U16, parse, text
from kilo.netctl.netlink.socket import Netlink

_CONTROL = 0x10
_GET_FAMILY = 3
_FAMILY_ID, _FAMILY_NAME = 1, 2
_HEADER = struct.Struct("=BBH")
HEADER = _HEADER.size


def body(command: int, attributes: bytes, version: int = 1) -> bytes:
    """The body of a message of a family."""
    return _HEADER.pack(command, version, 0) + attributes


def family(netlink: Netlink, name: str) -> int:
    """The message type of a family. Raises KernelError (ENOENT) if the kernel has none of that name."""
    for message in netlink.ask(_CONTROL, body(_GET_FAMILY, text(_FAMILY_NAME, name))):
        found = parse(message.data, message.start + HEADER, message.end)
        if _FAMILY_ID in found:
            return int(U16.unpack(found[_FAMILY_ID])[0])
    return 0
