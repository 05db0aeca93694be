"""The messages of nf_tables that the firewall sends and reads, as plain values.

Pure. Functions that make something give a Request for a transaction; ``list_…`` give the body of a
question. Source of the format: linux/netfilter/nf_tables.h. Called by the nft_… modules.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kilo.netctl.firewall.members import Interval
from kilo.netctl.firewall.nft_expressions import (
    Form,
    Rule,
    be32,
    pack_comment,
    pack_expressions,
    read_form,
)
from kilo.netctl.firewall.nft_intervals import CATCH_ALL, Bound
from kilo.netctl.netlink.attributes import as_text, attribute, nested, parse, text, walk
from kilo.netctl.netlink.socket import NLM_F_CREATE, Message, Request

SUBSYSTEM = 10
_BASE = SUBSYSTEM << 8
NEWTABLE, GETTABLE, DELTABLE = _BASE | 0, _BASE | 1, _BASE | 2
NEWCHAIN, GETCHAIN, DELCHAIN = _BASE | 3, _BASE | 4, _BASE | 5
NEWRULE, GETRULE, DELRULE = _BASE | 6, _BASE | 7, _BASE | 8
NEWSET, GETSET, DELSET = _BASE | 9, _BASE | 10, _BASE | 11
NEWSETELEM, GETSETELEM, DELSETELEM = _BASE | 12, _BASE | 13, _BASE | 14
NEWGEN, GETGEN = _BASE | 15, _BASE | 16
GET_COMPAT = 11 << 8
BATCH_BEGIN, BATCH_END = 16, 17

FAMILIES = {4: 2, 6: 10}
"""nf_tables' number of a family of tables, by IP version."""
GROUP = 7
"""The multicast group in which the kernel tells what changes."""

_NLM_F_APPEND = 0x800
_HEADER = struct.Struct(">BBH")
HEADER = _HEADER.size
_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
_PRIORITY = struct.Struct(">i")
_TABLE, _NAME_OR_CHAIN = 1, 2
_TABLE_FLAGS = 2
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE, _CHAIN_TYPE = 3, 4, 5, 6, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_POSITION, _RULE_USERDATA = 3, 4, 6, 7
_SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_SIZE, _SET_ID, _SET_USERDATA = 3, 4, 5, 10, 13
_ELEMENTS = 3
_ELEMENT_KEY, _ELEMENT_FLAGS = 1, 3
_ENDS, _CATCHES_ALL = 1, 2
_INTERVALS = 4
_ACCEPT = 1
_KEYS = {4: (7, 4), 6: (8, 16)}
"""How nft numbers the type of an address, and its size in bytes."""
_NETWORK_ORDER = struct.pack("=BBI", 0, 4, 2)
"""User data by which nft knows how to print a set's elements."""
_MOST = 60_000
"""Bytes of elements in one message: an attribute's length has 16 bits."""
_NESTED = 0x8000


class Hook(NamedTuple):
    """Where a base chain hangs: its type ("nat" or "filter"), the number of the hook, its priority."""

    type: str
    number: int
    priority: int
    policy: int = _ACCEPT


class ChainInfo(NamedTuple):
    """``use`` counts the chain's rules, and the jumps to it. ``hook`` None: it is only jumped to."""

    table: str
    name: str
    hook: Hook | None
    use: int


class SetInfo(NamedTuple):
    """``declared``: it is one that ``new_set`` makes."""

    table: str
    name: str
    declared: bool


class RuleInfo(NamedTuple):
    """``form`` None: the rule is nobody's that the reader looked for."""

    table: str
    chain: str
    handle: int
    form: Form | None


def header(version: int) -> bytes:
    """What the body of every message begins with; ``version`` 0 where no family is meant."""
    return _HEADER.pack(FAMILIES.get(version, 0), 0, 0)


BATCH_BOUND = _HEADER.pack(0, 0, SUBSYSTEM)
"""The body of BATCH_BEGIN and of BATCH_END."""


def of_table(version: int, table: str, name: str = "") -> bytes:
    """The body of a question about a table, or about its set or chain ``name``."""
    return header(version) + text(_TABLE, table) + (text(_NAME_OR_CHAIN, name) if name else b"")


def new_table(version: int, table: str) -> Request:
    return Request(NEWTABLE, NLM_F_CREATE, of_table(version, table))


def delete_table(version: int, table: str) -> Request:
    """With all that is in it."""
    return Request(DELTABLE, 0, of_table(version, table))


def new_chain(version: int, table: str, name: str, hook: Hook) -> Request:
    where = be32(_HOOK_NUMBER, hook.number) + attribute(_HOOK_PRIORITY, _PRIORITY.pack(hook.priority))
    body = of_table(version, table) + text(_CHAIN_NAME, name) + nested(_CHAIN_HOOK, where)
    body += be32(_CHAIN_POLICY, hook.policy) + text(_CHAIN_TYPE, hook.type)
    return Request(NEWCHAIN, NLM_F_CREATE, body)


def flush_chain(version: int, table: str, name: str) -> Request:
    """All rules of a chain go."""
    return Request(DELRULE, 0, of_table(version, table, name))


def delete_chain(version: int, table: str, name: str) -> Request:
    """A chain to which nothing jumps, without rules."""
    return Request(DELCHAIN, 0, of_table(version, table) + text(_CHAIN_NAME, name))


def new_rule(version: int, table: str, chain: str, rule: Rule, before: int = 0) -> Request:
    """A rule before the one with handle ``before``; 0: at the end."""
    body = of_table(version, table, chain) + nested(_RULE_EXPRESSIONS, pack_expressions(rule))
    if before:
        body += attribute(_RULE_POSITION, _U64.pack(before))
    if rule.comment:
        body += attribute(_RULE_USERDATA, pack_comment(rule.comment))
    return Request(NEWRULE, NLM_F_CREATE | (0 if before else _NLM_F_APPEND), body)


def delete_rule(version: int, table: str, chain: str, handle: int) -> Request:
    return Request(DELRULE, 0, of_table(version, table, chain) + attribute(_RULE_HANDLE, _U64.pack(handle)))


def new_set(version: int, table: str, name: str, number: int) -> Request:
    """An empty set of networks; ``number`` differs from those of others in the same transaction."""
    kind, size = _KEYS[version]
    body = of_table(version, table, name) + be32(_SET_FLAGS, _INTERVALS) + be32(_SET_KEY_TYPE, kind)
    body += be32(_SET_KEY_SIZE, size) + be32(_SET_ID, number) + attribute(_SET_USERDATA, _NETWORK_ORDER)
    return Request(NEWSET, NLM_F_CREATE, body)


def delete_set(version: int, table: str, name: str) -> Request:
    """A set that no rule looks into."""
    return Request(DELSET, 0, of_table(version, table, name))


def new_elements(version: int, table: str, name: str, intervals: Iterable[Interval]) -> Iterator[Request]:
    """Members for a set. The kernel refuses one that overlaps with one that is there."""
    for body in _element_lists(version, table, name, intervals):
        yield Request(NEWSETELEM, NLM_F_CREATE, body)


def delete_elements(version: int, table: str, name: str, intervals: Iterable[Interval]) -> Iterator[Request]:
    """Members for a set to lose. The kernel refuses what is not there."""
    for body in _element_lists(version, table, name, intervals):
        yield Request(DELSETELEM, 0, body)


def _element_lists(version: int, table: str, name: str, intervals: Iterable[Interval]) -> Iterator[bytes]:
    start = of_table(version, table, name)
    parts: list[bytes] = []
    size = 0
    for interval in intervals:
        part = _pack_interval(interval)
        if size + len(part) > _MOST:
            yield start + nested(_ELEMENTS, *parts)
            parts, size = [], 0
        parts.append(part)
        size += len(part)
    if parts:
        yield start + nested(_ELEMENTS, *parts)


def _element_frames(size: int) -> tuple[bytes, bytes, bytes]:
    """What stands before the key of a start and of an end, and after that of an end."""
    head = struct.Struct("=HH").pack
    key = head(8 + size, _ELEMENT_KEY | _NESTED) + head(4 + size, 1)
    return (
        head(12 + size, 1 | _NESTED) + key,
        head(20 + size, 1 | _NESTED) + key,
        be32(_ELEMENT_FLAGS, _ENDS),
    )


_FRAMES = {4: _element_frames(4), 16: _element_frames(16)}


def _pack_interval(interval: Interval) -> bytes:
    """A start, and, unless the interval is open, an end that is one beyond the last address."""
    start, end = interval
    if interval == CATCH_ALL:
        return nested(1, be32(_ELEMENT_FLAGS, _CATCHES_ALL))
    before_start, before_end, after_end = _FRAMES[len(start)]
    return before_start + start + (before_end + end + after_end if end else b"")


def table_flags(message: Message) -> int:
    found = parse(message.data, message.start + HEADER, message.end)
    return _number(found.get(_TABLE_FLAGS))


def parse_chain(message: Message) -> ChainInfo:
    found = parse(message.data, message.start + HEADER, message.end)
    where = found.get(_CHAIN_HOOK)
    hook = None
    if where is not None:
        values = parse(where, 0, len(where))
        hook = Hook(
            as_text(found.get(_CHAIN_TYPE, b"")),
            _number(values.get(_HOOK_NUMBER)),
            _PRIORITY.unpack(values[_HOOK_PRIORITY])[0] if _HOOK_PRIORITY in values else 0,
            _number(found.get(_CHAIN_POLICY)),
        )
    return ChainInfo(
        as_text(found.get(_TABLE, b"")),
        as_text(found.get(_CHAIN_NAME, b"")),
        hook,
        _number(found.get(_CHAIN_USE)),
    )


def chain_of(message: Message) -> str:
    """The chain that an event about a chain or a rule is about."""
    found = parse(message.data, message.start + HEADER, message.end)
    kind = _CHAIN_NAME if message.kind in (NEWCHAIN, DELCHAIN) else _NAME_OR_CHAIN
    return as_text(found.get(kind, b""))


def table_of(message: Message) -> str:
    """The table that an event, or a request, is about."""
    return as_text(parse(message.data, message.start + HEADER, message.end).get(_TABLE, b""))


def parse_set(version: int, message: Message) -> SetInfo:
    found = parse(message.data, message.start + HEADER, message.end)
    facts = (_number(found.get(_SET_KEY_TYPE)), _number(found.get(_SET_KEY_SIZE)))
    return SetInfo(
        as_text(found.get(_TABLE, b"")),
        as_text(found.get(_NAME_OR_CHAIN, b"")),
        facts == _KEYS[version] and _number(found.get(_SET_FLAGS)) == _INTERVALS,
    )


def parse_rule(message: Message, marks: tuple[bytes, ...] = ()) -> RuleInfo:
    """A rule; its form only if one of ``marks`` is anywhere in it, where marks are given."""
    data = message.data[message.start + HEADER : message.end]
    found = parse(data, 0, len(data))
    form = None
    if not marks or any(mark in data for mark in marks):
        form = read_form(found.get(_RULE_EXPRESSIONS, b""), found.get(_RULE_USERDATA, b""))
    handle = _U64.unpack(found[_RULE_HANDLE])[0] if _RULE_HANDLE in found else 0
    return RuleInfo(as_text(found.get(_TABLE, b"")), as_text(found.get(_NAME_OR_CHAIN, b"")), handle, form)


def parse_generation(message: Message) -> int:
    return _number(parse(message.data, message.start + HEADER, message.end).get(1))


def parse_bounds(version: int, messages: Iterable[Message]) -> list[Bound]:
    """The elements of a set. What has no key, since it stands for everything, has the key b""."""
    size = _KEYS[version][1]
    found: list[Bound] = []
    for message in messages:
        for kind, start, end in walk(message.data, message.start + HEADER, message.end):
            if kind == _ELEMENTS:
                found += _bounds(message.data[start:end], size)
    return found


def _bounds(elements: bytes, size: int) -> list[Bound]:
    """Elements have one of two forms, unless somebody put in others than we do."""
    pairs = _USUAL_ELEMENTS[size].findall(elements)
    usual = [(start or end, bool(start)) for start, end in pairs]
    lengths = (12 + size, 20 + size)
    if sum(lengths[not starts] for _, starts in usual) == len(elements):
        return usual
    return [_bound(elements, first, last) for _, first, last in walk(elements, 0, len(elements))]


def _usual_elements(size: int) -> re.Pattern[bytes]:
    """A start, or an end, with the kernel's framing, which may have flags for nesting or not."""
    frames = []
    for before, after in ((12 + size, b""), (20 + size, be32(_ELEMENT_FLAGS, _ENDS))):
        head = b"..".join(re.escape(bytes((length, 0))) for length in (before, 8 + size, 4 + size))
        frames.append(head + re.escape(b"\1\0") + b"(.{%d})" % size + re.escape(after))
    return re.compile(b"|".join(frames), re.DOTALL)


_USUAL_ELEMENTS = {size: _usual_elements(size) for _, size in _KEYS.values()}


def _bound(data: bytes, start: int, end: int) -> Bound:
    found = parse(data, start, end)
    return found.get(_ELEMENT_KEY, b"")[4:], not _number(found.get(_ELEMENT_FLAGS)) & _ENDS


def _number(value: bytes | None) -> int:
    return 0 if value is None else int(_U32.unpack(value)[0])
