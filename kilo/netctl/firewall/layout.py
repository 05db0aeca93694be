"""The binary form in which the kernel gives and takes the rules of a legacy xtables table.

Pure: bytes to values and back. A table is one block of entries; a chain of ours begins with an
entry whose target is ERROR and holds the chain's name, the hooks' chains are found by offset. Only
the hooks' chains and chains called KILO-… are read, so the cost does not grow with other people's
chains. Source: linux/netfilter/x_tables.h, netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h.
Counters, and all else that the kernel keeps for itself, are left out: two entries that are equal
here do the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kilo.errors import TemporaryError

OUR_CHAINS = "KILO-"
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
VERDICTS = {-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}
_NUMBERS = {name: number for number, name in VERDICTS.items()}

_HEAD = struct.Struct("@H29sB")
"""What every match and target begins with: size in bytes, name, revision."""
_STANDARD = struct.Struct("@i4x")
_SIZES = struct.Struct("@HH")
_ERROR_SIZE = 64
_ERROR_HEAD = _HEAD.pack(_ERROR_SIZE, b"ERROR", 0)
_INFO = struct.Struct("@32sI5I5III")
_BLOCK = struct.Struct("@32sI0Q")

SET_REVISION = 4
"""Of the set match: the highest that kernel and iptables know, as iptables prints no other."""
_SET = struct.Struct("@HBB4x40x")
"""struct xt_set_info_match_v4, without conditions on the members' counters."""

MASQUERADE = {4: struct.pack("@I20x", 1), 6: bytes(40)}
"""Data of a MASQUERADE target that leaves address and ports to the kernel."""
CLAMP_TO_PATH = struct.pack("@H6x", 0xFFFF)
"""Data of a TCPMSS target that takes the size from the route, and that of the route back."""

_NO_DEVICES = (b"",) * 4
_TCP = struct.Struct("@4H4B4x")
_ALL_PORTS = (0, 0xFFFF) * 2
_SYN, _RST = 0x02, 0x04


class Match(NamedTuple):
    """A condition beyond addresses and protocol: the extension's name and revision, and its data."""

    name: str
    revision: int
    data: bytes


class Entry(NamedTuple):
    """A rule. ``ip``: addresses, devices and protocol as struct ipt_ip or ip6t_ip6.

    ``target``: a verdict, a chain of ours, ``@offset`` for a jump to any other chain, or the name of
    an extension, whose data is in ``data``.
    """

    ip: bytes
    matches: tuple[Match, ...]
    target: str
    data: bytes = b""

    @property
    def comment(self) -> str:
        """The text of the comment match, "" without one."""
        for match in self.matches:
            if match.name == "comment":
                return match.data.partition(b"\0")[0].decode(errors="replace")
        return ""


@dataclass(frozen=True)
class Family:
    """How the entries of one IP version are laid out, and the socket options that carry them."""

    version: int
    address_bytes: int
    socket_family: int
    level: int
    revision_option: int
    entry: struct.Struct
    ip: struct.Struct
    """Addresses, names of devices and their masks, the protocol, flags."""
    protocol_flags: int
    names_file: str

    @property
    def sizes_at(self) -> int:
        """Where in an entry the offsets of its target and of the next entry are."""
        return self.ip.size + 4


FAMILIES = {
    4: Family(
        version=4,
        address_bytes=4,
        socket_family=2,
        level=0,
        revision_option=66,
        entry=struct.Struct("@84sIHHIQQ"),
        ip=struct.Struct("@4s4s4s4s16s16s16s16sHBB"),
        protocol_flags=0,
        names_file="ip_tables_names",
    ),
    6: Family(
        version=6,
        address_bytes=16,
        socket_family=10,
        level=41,
        revision_option=68,
        entry=struct.Struct("@136sIHHIQQ"),
        ip=struct.Struct("@16s16s16s16s16s16s16s16sHxBB3x"),
        protocol_flags=1,
        names_file="ip6_tables_names",
    ),
}


class Info(NamedTuple):
    """Where the chains of the hooks begin and end, by name, and the size of all entries in bytes."""

    chains: dict[str, tuple[int, int]]
    entries: int
    size: int


@dataclass
class Table:
    """A table as far as it is looked at: the rules of the hooks' chains and of those of ours."""

    hooks: dict[str, list[Entry]] = field(default_factory=dict)
    ours: dict[str, list[Entry]] = field(default_factory=dict)


def info_request(name: str) -> bytearray:
    """The buffer in which the kernel returns a table's Info."""
    return bytearray(_INFO.pack(name.encode(), *(0,) * 13))


def parse_info(buffer: bytes | bytearray) -> Info:
    _, valid, *numbers = _INFO.unpack(buffer)
    starts, ends = numbers[0:5], numbers[5:10]
    chains = {name: (starts[hook], ends[hook]) for hook, name in enumerate(HOOKS) if valid & 1 << hook}
    return Info(chains, numbers[10], numbers[11])


def block_request(name: str, size: int) -> bytearray:
    """The buffer in which the kernel returns a table's entries, ``size`` bytes of them."""
    return bytearray(_BLOCK.pack(name.encode(), size)) + bytearray(size)


def entries_of(buffer: bytes | bytearray) -> bytes:
    """The entries in an answer to block_request."""
    return bytes(memoryview(buffer)[_BLOCK.size :])


def parse_table(family: Family, info: Info, buffer: bytes | bytearray) -> Table:
    """The rules in an answer to block_request. Raises TemporaryError if it makes no sense."""
    block = entries_of(buffer)
    try:
        firsts = chains_called(block, OUR_CHAINS)
        names = {first: name for name, first in firsts.items()}
        table = Table()
        for name, (start, end) in info.chains.items():
            table.hooks[name] = list(_read(family, block, start, end, names))
        for name, first in firsts.items():
            rules = list(_read(family, block, first, info.size, names))
            table.ours[name] = rules[:-1]
    except (struct.error, IndexError, ValueError) as e:
        raise TemporaryError(f"the kernel's rules could not be read: {e}") from e
    return table


def chain_rules(family: Family, info: Info, buffer: bytes | bytearray, chain: str) -> list[Entry]:
    """The rules of a hook's chain, or of one to which a rule jumps, by the offset after its ``@``.

    Raises TemporaryError if the answer to block_request makes no sense.
    """
    block = entries_of(buffer)
    start, end = info.chains[chain] if chain in info.chains else (int(chain), info.size)
    try:
        rules = list(_read(family, block, start, end, {}))
    except (struct.error, IndexError, ValueError) as e:
        raise TemporaryError(f"the kernel's rules could not be read: {e}") from e
    return rules if chain in info.chains else rules[:-1]


def policy_of(family: Family, info: Info, buffer: bytes | bytearray, hook: str) -> str:
    """What becomes of a packet at the end of a hook's chain, as in VERDICTS. Raises as chain_rules."""
    block, at = entries_of(buffer), info.chains[hook][1]
    try:
        target_at, length = _SIZES.unpack_from(block, at + family.sizes_at)
        return _parse(family, block[at : at + length], target_at, at + length, {}).target
    except (struct.error, IndexError, ValueError) as e:
        raise TemporaryError(f"the kernel's rules could not be read: {e}") from e


def chains_called(block: bytes, prefix: str) -> dict[str, int]:
    """The offset of the first rule of each chain whose name begins with ``prefix``, by name."""
    firsts = {}
    mark = _ERROR_HEAD + prefix.encode()
    at = block.find(mark)
    while at >= 0:
        name_at = at + _HEAD.size
        firsts[_text(block[name_at : at + _ERROR_SIZE])] = at + _ERROR_SIZE
        at = block.find(mark, name_at)
    return firsts


def _read(family: Family, block: bytes, start: int, end: int, chains: dict[int, str]) -> Iterator[Entry]:
    """The entries from ``start`` to ``end``, or to the head of the next chain.

    A hook's chain ends before its policy. A chain of ours has a RETURN of the kernel's as its last.
    """
    at = start
    while at < end:
        target_at, length = _SIZES.unpack_from(block, at + family.sizes_at)
        if length < family.entry.size:
            raise ValueError(f"an entry of {length} bytes")
        if block.startswith(_ERROR_HEAD, at + target_at):
            return
        yield _parse(family, block[at : at + length], target_at, at + length, chains)
        at += length


def _parse(family: Family, entry: bytes, target_at: int, following: int, chains: dict[int, str]) -> Entry:
    matches = []
    at = family.entry.size
    while at < target_at:
        size, name, revision = _HEAD.unpack_from(entry, at)
        if size < _HEAD.size:
            raise ValueError(f"a match of {size} bytes")
        matches.append(Match(_text(name), revision, entry[at + _HEAD.size : at + size]))
        at += size
    size, name, revision = _HEAD.unpack_from(entry, target_at)
    target, data = _text(name), entry[target_at + _HEAD.size : target_at + size]
    if not target:
        (verdict,) = _STANDARD.unpack(data)
        target, data = _verdict(verdict, following, chains), b""
    elif revision:
        target = f"{target}.{revision}"
    return Entry(entry[: family.ip.size], tuple(matches), target, data)


def _verdict(verdict: int, following: int, chains: dict[int, str]) -> str:
    if verdict < 0:
        return VERDICTS.get(verdict, str(verdict))
    if verdict == following:
        return ""
    return chains.get(verdict, f"@{verdict}")


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode(errors="replace")


def pack(family: Family, entry: Entry) -> bytes:
    """``entry`` as libiptc takes it: verdicts and jumps by name."""
    matches = b"".join(
        _HEAD.pack(_HEAD.size + len(match.data), match.name.encode(), match.revision) + match.data
        for match in entry.matches
    )
    data = entry.data or _STANDARD.pack(_NUMBERS.get(entry.target, 0))
    target = _HEAD.pack(_HEAD.size + len(data), entry.target.encode(), 0) + data
    target_at = family.entry.size + len(matches)
    head = family.entry.pack(entry.ip, 0, target_at, target_at + len(target), 0, 0, 0)
    return head + matches + target


def addresses(family: Family, side: Literal["src", "dst"], member: bytes, protocol: int = 0) -> bytes:
    """The part of a rule that compares the packet's source or destination with a network.

    ``member`` as of kilo.netctl.firewall.backend.member_of; b"" for any. ``protocol`` 0 is any.
    """
    size = family.address_bytes
    network, mask = bytes(size), bytes(size)
    if member:
        bits = member[-1]
        network, mask = member[:-1], ((1 << size * 8) - (1 << size * 8 - bits)).to_bytes(size)
    none = bytes(size)
    pair = (network, none, mask, none) if side == "src" else (none, network, none, mask)
    return family.ip.pack(*pair, *_NO_DEVICES, protocol, family.protocol_flags if protocol else 0, 0)


def passing(family: Family, way: Literal["in", "out"], device: str, protocol: int) -> bytes:
    """The part of a rule that compares the device by which the packet came, or goes, and the protocol."""
    anywhere = (bytes(family.address_bytes),) * 4
    name = device.encode() + b"\0"
    mask = b"\xff" * len(name)
    devices = (name, b"", mask, b"") if way == "in" else (b"", name, b"", mask)
    return family.ip.pack(*anywhere, *devices, protocol, family.protocol_flags, 0)


def syn_match() -> Match:
    """The packet is TCP's first or second of a connection."""
    return Match("tcp", 0, _TCP.pack(*_ALL_PORTS, 0, _SYN | _RST, _SYN, 0))


def set_match(index: int, side: Literal["src", "dst"]) -> Match:
    """The packet's source or destination is in the set that has ``index`` in this namespace."""
    return Match("set", SET_REVISION, _SET.pack(index, 1, 2 if side == "src" else 0))


def comment(text: str) -> Match:
    """Always true; ``text`` is at most 255 bytes."""
    return Match("comment", 0, text.encode().ljust(256, b"\0"))
