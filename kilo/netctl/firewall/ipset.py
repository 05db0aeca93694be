"""ipset by netlink: the sets of networks (hash:net) that the firewall's rules look into.

The messages are packed here: pyroute2's IPSet needs 180 µs for each member and takes one at a time,
where one message of ours carries a thousand. All sets called kilo-…-v4 and kilo-…-v6 are ours: of
the backend that their names say, so that one does not remove what the other uses.
Source of the format: linux/netfilter/ipset/ip_set.h. Works on the network namespace of the calling
thread. Called by legacy and sets of kilo.netctl.firewall.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Set
from itertools import islice
from typing import Literal

from kilo.errors import KiloError, TemporaryError
from kilo.netctl.firewall import xtables
from kilo.netctl.firewall.backend import SetId
from kilo.netctl.netlink.socket import NETLINK_NETFILTER, KernelError, Netlink

MAX_MEMBERS = 1 << 20
"""Of one set. No memory is set aside for it."""
OF_LEGACY = re.compile(r"kilo-(?!nft-)[a-z-]+-v[46]")
"""The names of the legacy firewall's sets."""
OF_NFT = re.compile(r"kilo-nft-[a-z-]+-v[46]")
"""The names of sets into which rules look that iptables-nft understands."""

_SUBSYSTEM, _PROTOCOL = 6 << 8, 6
_CREATE, _DESTROY, _LIST, _ADD, _DELETE, _TYPE = 2, 3, 7, 9, 10, 13
_A_PROTOCOL, _A_NAME, _A_TYPE, _A_REVISION, _A_FAMILY, _A_FLAGS, _A_DATA, _A_MANY, _A_LINE = range(1, 10)
_IP, _CIDR, _MEMBER_FLAGS, _MAXELEM = 1, 3, 8, 19
_NESTED, _NETWORK_ORDER, _KIND = 0x8000, 0x4000, 0x3FFF
_NAMES_ONLY = 2
_TYPE_NAME = "hash:net"
_BATCH = 1000
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

_HEADER = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_NO_TYPE, _OTHER_TYPE = 4098, 4103
REFERRED = 4100
_NO_NETFILTER = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
_NO_IPSET = (errno.EINVAL, errno.EOPNOTSUPP)
_PRIVATE = {
    4097: "protocol error",
    _NO_TYPE: f"the kernel has no set type {_TYPE_NAME} (module ip_set_hash_net)",
    4099: "no more sets are allowed",
    REFERRED: "rules still refer to it",
    _OTHER_TYPE: "it exists with another type",
    4352: "it is full",
}


class IpsetMissing(KiloError):
    """The kernel has no ipset, or not the type that is needed."""


class IpsetError(TemporaryError):
    """The kernel refused; ``code`` is an errno, or one of ipset's own above 4096."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what}: {_PRIVATE.get(code) or os.strerror(code)}")
        self.code = code


def name_of(set_id: SetId, owner: Literal["", "nft-"] = "") -> str:
    """The name in the kernel, at most 31 characters."""
    kind, version = set_id
    return f"kilo-{owner}{kind.replace('_', '-')}-v{version}"


_HALVES = {bytes(size + 1): {bytes((half, *bytes(size - 1), 1)) for half in (0, 0x80)} for size in (4, 16)}
"""The two halves of 0.0.0.0/0 and of ::/0."""


def in_kernel(members: Set[bytes]) -> Set[bytes]:
    """``members`` of one IP version as a set holds them: it takes no /0, but both halves of it."""
    for everything, halves in _HALVES.items():
        if everything in members:
            return (members - {everything}) | halves
    return members


class Ipset:
    """One netlink socket, to be closed. A member is an address in network order and a byte of length.

    Methods raise IpsetError where the kernel refuses, TemporaryError where its answer is lost.
    """

    def __init__(self, opened: Callable[[int], Netlink] = Netlink) -> None:
        """Raises IpsetMissing if the kernel does not know the protocol, else TemporaryError."""
        try:
            self._netlink = opened(NETLINK_NETFILTER)
        except TemporaryError as e:
            if getattr(e.__cause__, "errno", 0) in _NO_NETFILTER:
                raise IpsetMissing(f"no netfilter: {e}") from e
            raise  # a lack of descriptors or memory passes

    def __enter__(self) -> Ipset:
        return self

    def __exit__(self, *error: object) -> None:
        self._netlink.close()

    def check(self) -> None:
        """Raises IpsetMissing if the kernel cannot hold our sets, and could not load what it lacks."""
        try:
            self._call(_TYPE, _text(_A_TYPE, _TYPE_NAME) + _byte(_A_FAMILY, socket.AF_INET), "ipset")
        except IpsetError as e:
            if e.code in (*_NO_IPSET, errno.ENOENT, _NO_TYPE):
                raise IpsetMissing(str(e)) from e
            raise

    def names(self, pattern: re.Pattern[str] = OF_LEGACY) -> list[str]:
        """The names of all sets that are ours, of the backend that ``pattern`` is for.

        Raises IpsetMissing if the kernel has no sets at all.
        """
        flags = _attribute(_A_FLAGS | _NETWORK_ORDER, struct.pack("!I", _NAMES_ONLY))
        found = []
        try:
            for message in self._dump(flags, "listing sets"):
                found += [_string(value) for kind, value in _attributes(message) if kind == _A_NAME]
        except IpsetError as e:
            if e.code in _NO_IPSET:
                raise IpsetMissing(str(e)) from e
            raise
        return [name for name in found if pattern.fullmatch(name)]

    def members(self, name: str) -> set[bytes] | None:
        """The members of a set; None if the set is not of the type that its name says.

        A member that somebody gave an option (nomatch) has a byte more.
        """
        found: set[bytes] = set()
        sort = b""
        for message in self._dump(_text(_A_NAME, name), name):
            for kind, value in _attributes(message):
                if kind in (_A_TYPE, _A_FAMILY):
                    sort += value
                elif kind == _A_MANY:
                    found |= _unpacked(value)
        return found if sort == _TYPE_NAME.encode() + bytes((0, _FAMILY[int(name[-1])])) else None

    def index(self, name: str) -> int:
        """The number by which rules refer to a set. Raises TemporaryError if there is none."""
        return xtables.set_index(name)

    def create(self, name: str, version: int) -> None:
        """An empty set; none is made if there is one of the same name and type."""
        limit = _attribute(_MAXELEM | _NETWORK_ORDER, struct.pack("!I", MAX_MEMBERS))
        body = (
            _text(_A_NAME, name)
            + _text(_A_TYPE, _TYPE_NAME)
            + _byte(_A_REVISION, 0)
            + _byte(_A_FAMILY, _FAMILY[version])
            + _attribute(_A_DATA | _NESTED, limit)
        )
        self._call(_CREATE, body, name)

    def destroy(self, name: str) -> None:
        """Remove a set; one that is gone already is no error."""
        try:
            self._call(_DESTROY, _text(_A_NAME, name), name)
        except IpsetError as e:
            if e.code != errno.ENOENT:
                raise

    def add(self, name: str, members: Iterable[bytes]) -> None:
        """Add members; those that it has already are no error."""
        self._many(_ADD, name, members)

    def delete(self, name: str, members: Iterable[bytes]) -> None:
        """Remove members; those that it does not have are no error."""
        self._many(_DELETE, name, members)

    def _many(self, command: int, name: str, members: Iterable[bytes]) -> None:
        rest = iter(members)
        start = _text(_A_NAME, name) + _attribute(_A_LINE, bytes(4))
        while batch := b"".join(map(_packed, islice(rest, _BATCH))):
            self._call(command, start + _attribute(_A_MANY | _NESTED, batch), name)

    def _call(self, command: int, body: bytes, what: str) -> None:
        try:
            self._netlink.ask(_SUBSYSTEM | command, _START + body)
        except KernelError as e:
            raise IpsetError(what, e.errno) from e

    def _dump(self, body: bytes, what: str) -> Iterator[bytes]:
        """The attributes of each answer."""
        try:
            messages = self._netlink.dump(_SUBSYSTEM | _LIST, _START + body)
        except KernelError as e:
            raise IpsetError(what, e.errno) from e
        for message in messages:
            yield message.data[message.start + _HEADER.size : message.end]


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _byte(kind: int, value: int) -> bytes:
    return _attribute(kind, bytes((value,)))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _attributes(block: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(block):
        size, kind = _ATTRIBUTE.unpack_from(block, at)
        if size < 4:
            return
        yield kind & _KIND, block[at + 4 : at + size]
        at += (size + 3) & ~3


_START = _HEADER.pack(socket.AF_INET, 0, 0) + _byte(_A_PROTOCOL, _PROTOCOL)
"""What each request begins with."""


def _string(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="replace")


def _frame(address_bytes: int) -> tuple[bytes, bytes, struct.Struct]:
    """What stands before the address and before the length in an element, and the element as a whole."""
    kind, size = 1 if address_bytes == 4 else 2, address_bytes
    start = (
        _ATTRIBUTE.pack(size + 20, _A_DATA | _NESTED)
        + _ATTRIBUTE.pack(size + 8, _IP | _NESTED)
        + _ATTRIBUTE.pack(size + 4, kind | _NETWORK_ORDER)
    )
    return start, _ATTRIBUTE.pack(5, _CIDR), struct.Struct(f"12s{size}s4ss3x")


_FRAMES = {4: _frame(4), 16: _frame(16)}


def _packed(member: bytes) -> bytes:
    """A member as an element of an ADD or DELETE: its address and the length of its prefix."""
    start, middle, _ = _FRAMES[len(member) - 1]
    return start + member[:-1] + middle + member[-1:] + bytes(3)


def _unpacked(elements: bytes) -> set[bytes]:
    """The members in the elements of a LIST, which the kernel frames as we do."""
    for start, middle, element in _FRAMES.values():
        if elements.startswith(start) and len(elements) % element.size == 0:
            rows = list(element.iter_unpack(elements))
            if all(row[0] == start and row[2] == middle for row in rows):
                return {row[1] + row[3] for row in rows}
    return {_odd_member(data) for _, data in _attributes(elements)}


def _odd_member(data: bytes) -> bytes:
    """The member in an element with more to it; a byte of flags makes it unlike any of ours."""
    address, bits, flags = b"", b"", b""
    for kind, value in _attributes(data):
        if kind == _IP:
            address = value[4:]
        elif kind == _CIDR:
            bits = value[:1]
        elif kind == _MEMBER_FLAGS:
            flags = b"!"
    return address + bits + flags
