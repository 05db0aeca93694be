"""Rules of nf_tables: built as lists of expressions, and read back in a form that compares.

Pure. The kernel gives a rule back with attributes in an order of its own, and with defaults that
nobody sent, so rules are compared by ``Form``: what they do, without counters. Source of the format:
linux/netfilter/nf_tables.h and nf_tables_compat.h. Called by the nft_… modules of this package.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Literal, NamedTuple

from kilo.netctl.netlink.attributes import as_text, attribute, nested, text, walk

Side = Literal["src", "dst"]
Way = Literal["in", "out"]
Verdict = Literal["accept", "drop", "return"]

_LIST_ELEMENT, _NAME, _DATA = 1, 1, 2
_COMMENT_IN_USERDATA = 0
_REGISTER = 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_L4_PROTOCOL = 16
_DEVICE: dict[Way, int] = {"in": 6, "out": 7}
_DEVICE_SIZE = 16
_TCP_FLAGS_AT, _SYN, _SYN_OR_RST = 13, b"\x02", b"\x06"
_PATH_MSS, _HOST_TO_NETWORK = 3, 1
_TCP_OPTION, _MAXSEG, _VALUE_AT, _VALUE_SIZE = 1, 2, 2, 2
_INVERTED = 1
_VERDICTS: dict[Verdict, int] = {"drop": 0, "accept": 1, "return": -5}
_ADDRESS_AT: dict[tuple[int, Side], tuple[int, int]] = {
    (4, "src"): (12, 4),
    (4, "dst"): (16, 4),
    (6, "src"): (8, 16),
    (6, "dst"): (24, 16),
}
"""Offset of an address in the header, and its size, in bytes, by IP version."""
_NUMBER = struct.Struct(">I")
_SIGNED = struct.Struct(">i")
_NESTED: dict[str, dict[int, tuple[int, ...]]] = {
    "immediate": {2: (2,)},
    "cmp": {3: ()},
    "bitwise": {4: (), 5: ()},
}
"""Attributes of an expression that hold attributes; those of these that again hold some."""


class Expression(NamedTuple):
    """``data``: its attributes, packed."""

    name: str
    data: bytes = b""


class Rule(NamedTuple):
    """``comment`` is kept where nft keeps it; iptables has an expression for it (``xt_comment``)."""

    expressions: tuple[Expression, ...]
    comment: str = ""


class Form(NamedTuple):
    """What a rule does: two that are equal do the same.

    ``parts``: each expression's name, and its attributes by path, without those that are zero.
    """

    parts: tuple[tuple[str, tuple[tuple[tuple[int, ...], bytes], ...]], ...]
    comment: str
    target: str
    """The chain that it jumps to, or ""."""


def be32(kind: int, value: int) -> bytes:
    """An attribute that holds a 32-bit number in network order."""
    return attribute(kind, _NUMBER.pack(value))


def in_set(version: int, side: Side, name: str, inverted: bool = False) -> tuple[Expression, ...]:
    """The packet's source or destination is, or is not, in a set of the rule's own table."""
    found = text(1, name) + be32(2, _REGISTER) + be32(5, _INVERTED if inverted else 0)
    return (_address(version, side), Expression("lookup", found))


def in_network(version: int, side: Side, member: bytes) -> tuple[Expression, ...]:
    """The packet's source or destination is in a network; ``member`` as of backend.member_of.

    As iptables-nft has it: whole bytes are compared, and a mask is used only if there is a rest.
    """
    network, bits = member[:-1], member[-1]
    size = len(network)
    if bits == 0:
        return ()
    if bits % 8 == 0:
        return (_address(version, side, bits // 8), _equals(network[: bits // 8]))
    mask = ((1 << size * 8) - (1 << size * 8 - bits)).to_bytes(size)
    return (_address(version, side), _masked(mask), _equals(network))


def protocol(number: int) -> tuple[Expression, ...]:
    """The packet's payload is of this protocol, whatever extension headers there are before it."""
    loaded = Expression("meta", be32(1, _REGISTER) + be32(2, _L4_PROTOCOL))
    return (loaded, _equals(bytes((number,))))


def passing(way: Way, device: str) -> tuple[Expression, ...]:
    """The packet came, or goes, by the device of this name."""
    loaded = Expression("meta", be32(1, _REGISTER) + be32(2, _DEVICE[way]))
    return (loaded, _equals(device.encode().ljust(_DEVICE_SIZE, b"\0")))


def syn() -> tuple[Expression, ...]:
    """The packet is TCP's first or second of a connection; it must be TCP's."""
    where = be32(2, _TRANSPORT_HEADER) + be32(3, _TCP_FLAGS_AT) + be32(4, 1)
    return (Expression("payload", be32(1, _REGISTER) + where), _masked(_SYN_OR_RST), _equals(_SYN))


def clamped_to_path() -> tuple[Expression, ...]:
    """TCP's maximum segment size is no more than the route takes, and the route back; it never grows."""
    loaded = be32(1, _REGISTER) + be32(2, _PATH_MSS)
    turned = be32(1, _REGISTER) + be32(2, _REGISTER) + be32(3, _HOST_TO_NETWORK)
    turned += be32(4, _VALUE_SIZE) + be32(5, _VALUE_SIZE)
    written = attribute(2, bytes((_MAXSEG,))) + be32(3, _VALUE_AT) + be32(4, _VALUE_SIZE)
    written += be32(6, _TCP_OPTION) + be32(7, _REGISTER)
    return (Expression("rt", loaded), Expression("byteorder", turned), Expression("exthdr", written))


def verdict(name: Verdict) -> Expression:
    code = attribute(1, _SIGNED.pack(_VERDICTS[name]))
    return Expression("immediate", be32(1, 0) + nested(2, nested(2, code)))


MASQUERADE = Expression("masq")
COUNTER = Expression("counter", attribute(1, bytes(8)) + attribute(2, bytes(8)))


def xt_match(name: str, revision: int, data: bytes) -> Expression:
    """A match of xtables, as iptables-nft uses them."""
    return Expression("match", text(1, name) + be32(2, revision) + attribute(3, data))


def xt_comment(comment: str) -> Expression:
    """Always true; ``comment`` is at most 255 bytes."""
    return xt_match("comment", 0, comment.encode().ljust(256, b"\0"))


def _address(version: int, side: Side, count: int = 0) -> Expression:
    """Load an address, or its first ``count`` bytes."""
    offset, size = _ADDRESS_AT[version, side]
    where = be32(2, _NETWORK_HEADER) + be32(3, offset) + be32(4, count or size)
    return Expression("payload", be32(1, _REGISTER) + where)


def _masked(mask: bytes) -> Expression:
    operands = nested(4, attribute(1, mask)) + nested(5, attribute(1, bytes(len(mask))))
    return Expression("bitwise", be32(1, _REGISTER) + be32(2, _REGISTER) + be32(3, len(mask)) + operands)


def _equals(value: bytes) -> Expression:
    return Expression("cmp", be32(1, _REGISTER) + be32(2, 0) + nested(3, attribute(1, value)))


def pack_expressions(rule: Rule) -> bytes:
    """The list of a rule's expressions, as the value of one attribute."""
    return b"".join(
        nested(_LIST_ELEMENT, text(_NAME, expression.name), nested(_DATA, expression.data))
        for expression in rule.expressions
    )


def pack_comment(comment: str) -> bytes:
    """A comment as user data, b"" for none; at most 253 bytes."""
    data = comment.encode() + b"\0"
    return bytes((_COMMENT_IN_USERDATA, len(data))) + data if comment else b""


def read_form(expressions: bytes, userdata: bytes) -> Form:
    """The form of a rule of which the kernel has these expressions and user data."""
    comment, target = _comment_of(userdata), ""
    parts = []
    for _, start, end in walk(expressions, 0, len(expressions)):
        name, data = "", b""
        for kind, first, last in walk(expressions, start, end):
            if kind == _NAME:
                name = as_text(expressions[first:last])
            elif kind == _DATA:
                data = expressions[first:last]
        if name == "counter":
            continue
        values = dict(_flat(data, _NESTED.get(name, {})))
        if name == "match" and as_text(values.get((1,), b"")) == "comment":
            comment = as_text(values.get((3,), b"").partition(b"\0")[0])
            continue
        target = as_text(values.get((2, 2, 2), b"")) if name == "immediate" else target
        parts.append((name, tuple(sorted((path, v) for path, v in values.items() if v.strip(b"\0")))))
    return Form(tuple(parts), comment, target)


@lru_cache(64)
def form_of(rule: Rule) -> Form:
    """The form in which ``rule`` will be read back."""
    return read_form(pack_expressions(rule), pack_comment(rule.comment))


def _flat(data: bytes, inner: dict[int, tuple[int, ...]]) -> list[tuple[tuple[int, ...], bytes]]:
    found = []
    for kind, start, end in walk(data, 0, len(data)):
        value = data[start:end]
        if kind in inner:
            below = _flat(value, dict.fromkeys(inner[kind], ()))
            found += [((kind, *path), v) for path, v in below]
        else:
            found.append(((kind,), value))
    return found


def _comment_of(userdata: bytes) -> str:
    at = 0
    while at + 2 <= len(userdata):
        kind, size = userdata[at], userdata[at + 1]
        if kind == _COMMENT_IN_USERDATA:
            return as_text(userdata[at + 2 : at + 2 + size])
        at += 2 + size
    return ""
