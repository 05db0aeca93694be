"""What nf_tables has of ours, object by object, and what requests would make of it: for people.

``take`` plays the requests of nft_edits and no others. Used by kilo.netctl.firewall.rehearsed.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kilo.model.net import text_of
from kilo.netctl.firewall.layout import OUR_CHAINS
from kilo.netctl.firewall.members import Interval
from kilo.netctl.firewall.nft_expressions import Form
from kilo.netctl.firewall.nft_intervals import CATCH_ALL, intervals
from kilo.netctl.firewall.nft_layout import HOST_TABLES, TABLE
from kilo.netctl.firewall.nft_messages import (
    DELCHAIN,
    DELRULE,
    DELSET,
    DELSETELEM,
    DELTABLE,
    FAMILIES,
    GETRULE,
    GETSET,
    GETSETELEM,
    GETTABLE,
    NEWCHAIN,
    NEWRULE,
    NEWSET,
    NEWSETELEM,
    NEWTABLE,
    chain_of,
    of_table,
    parse_bounds,
    parse_chain,
    parse_rule,
    parse_set,
    table_of,
)
from kilo.netctl.firewall.nft_socket import ABSENT, NftSocket
from kilo.netctl.firewall.rules import OUR_COMMENTS
from kilo.netctl.netlink.socket import KernelError, Message, Request

Place = tuple[int, str, str]
"""IP version, table, and the name of a chain or set."""
_MARKS = (OUR_CHAINS.encode(), OUR_COMMENTS.encode())
_VERSIONS = {number: version for version, number in FAMILIES.items()}
_NAMES = {4: "ip", 6: "ip6"}


class Shown(NamedTuple):
    """An object: ``text`` is for a person, ``same`` tells it from others with the same text."""

    text: str
    same: Hashable = ""


class _Rule(NamedTuple):
    handle: int
    form: Form


@dataclass
class Picture:
    """Tables, chains, rules and elements of sets. Of others' rules there are none in it.

    ``written``: the tables that requests were about, as ``objects`` names them.
    """

    tables: set[tuple[int, str]] = field(default_factory=set)
    chains: dict[Place, list[_Rule]] = field(default_factory=dict)
    sets: dict[Place, set[Interval]] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, netlink: NftSocket) -> Picture:
        """What there is now. Raises TemporaryError."""
        picture = cls()
        for version in FAMILIES:
            for message in netlink.chains(version):
                chain = parse_chain(message)
                if chain.table == TABLE or chain.table in HOST_TABLES:
                    picture._read_rules(netlink, (version, chain.table, chain.name))
            if not _is_there(netlink, version):
                continue
            picture.tables.add((version, TABLE))
            for message in netlink.dump(GETSET, of_table(version, TABLE), optional=True):
                name = parse_set(version, message).name
                elements = netlink.dump(GETSETELEM, of_table(version, TABLE, name))
                picture.sets[version, TABLE, name] = intervals(parse_bounds(version, elements))
        return picture

    def _read_rules(self, netlink: NftSocket, place: Place) -> None:
        marks = () if place[1] == TABLE else _MARKS
        found = self.chains[place] = []
        for message in netlink.dump(GETRULE, of_table(*place), optional=True):
            rule = parse_rule(message, marks)
            if (rule.table, rule.chain) == place[1:] and rule.form is not None:
                found.append(_Rule(rule.handle, rule.form))

    def take(self, request: Request) -> None:
        """Play one request of a transaction."""
        message = Message(request.kind, request.flags, 0, request.body, 0, len(request.body))
        version, kind = _VERSIONS[request.body[0]], request.kind
        table = table_of(message)
        place = version, table, chain_of(message)
        self.written.add(f"{_NAMES[version]} {table}")
        if kind == NEWTABLE:
            self.tables.add((version, table))
        elif kind == DELTABLE:
            self.tables.discard((version, table))
            self.chains = {p: rules for p, rules in self.chains.items() if p[:2] != (version, table)}
            self.sets = {p: elements for p, elements in self.sets.items() if p[:2] != (version, table)}
        elif kind == NEWCHAIN:
            self.chains.setdefault(place, [])
        elif kind == DELCHAIN:
            self.chains.pop(place, None)
        elif kind in (NEWRULE, DELRULE):
            self._take_rule(place, message)
        elif kind == NEWSET:
            self.sets.setdefault(place, set())
        elif kind == DELSET:
            self.sets.pop(place, None)
        elif kind in (NEWSETELEM, DELSETELEM):
            elements = intervals(parse_bounds(version, [message]))
            held = self.sets.setdefault(place, set())
            self.sets[place] = held | elements if kind == NEWSETELEM else held - elements

    def _take_rule(self, place: Place, message: Message) -> None:
        """A deletion without a handle is one of all rules of the chain."""
        rule, rules = parse_rule(message), self.chains.setdefault(place, [])
        if message.kind == NEWRULE and rule.form is not None:
            rules.append(_Rule(0, rule.form))
        elif message.kind == DELRULE:
            self.chains[place] = [r for r in rules if rule.handle and r.handle != rule.handle]

    def objects(self) -> dict[str, list[Shown]]:
        """All that is in it, by table, in the order in which it would be made."""
        found: dict[str, list[Shown]] = {}

        def add(version: int, table: str, kind: str, rest: str = "", same: Hashable = "") -> None:
            where = f"{_NAMES[version]} {table}"
            found.setdefault(where, []).append(Shown(f"{kind} {where}{rest}", same))

        for version, table in sorted(self.tables):
            add(version, table, "table")
        for (version, table, name), elements in sorted(self.sets.items()):
            add(version, table, "set", f" {name}")
            for interval in sorted(elements):
                add(version, table, "element", f" {name} {_network(version, interval)}")
        for (version, table, chain), rules in sorted(self.chains.items()):
            if table == TABLE or chain.startswith(OUR_CHAINS):
                add(version, table, "chain", f" {chain}")
            for rule in rules:
                add(version, table, "rule", f' {chain} "{rule.form.comment}"', rule.form)
        return found


def _is_there(netlink: NftSocket, version: int) -> bool:
    try:
        netlink.ask(GETTABLE, of_table(version, TABLE))
    except KernelError as e:
        if e.errno != errno.ENOENT and e.errno not in ABSENT:
            raise
        return False
    return True


def _network(version: int, interval: Interval) -> str:
    """A network, or a range where it is none."""
    if interval == CATCH_ALL:
        return "*"
    size = 4 if version == 4 else 16
    first = int.from_bytes(interval[0])
    last = (int.from_bytes(interval[1]) if interval[1] else 1 << size * 8) - 1
    width = (last - first).bit_length()
    if last - first == (1 << width) - 1 and first & ((1 << width) - 1) == 0:
        return f"{text_of(version, first)}/{size * 8 - width}"
    return f"{text_of(version, first)}-{text_of(version, last)}"


def compared(have: Iterable[Shown], want: Iterable[Shown]) -> Iterator[tuple[str, str]]:
    """Sign and text of what one has more often than the other; what goes is told before what comes."""
    before, after = Counter(have), Counter(want)
    for sign, which in (("-", before - after), ("+", after - before)):
        yield from ((sign, shown.text) for shown in which.elements())
