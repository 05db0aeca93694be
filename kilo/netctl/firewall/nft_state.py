"""What nf_tables has of ours, read by netlink: our table, and the host's chains that we have rules in.

Ours are: the table ``kilo``; in the host's tables nat and filter, the chains called KILO-… with all
that is in them, and in base chains every rule that jumps to one of those or has a comment beginning
with "Kilo:", whoever made it: the Go agent marks its rules the same way where iptables is
iptables-nft. Called by kilo.netctl.firewall.nft.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kilo.errors import TemporaryError
from kilo.model.plan import FirewallSet
from kilo.netctl.firewall.layout import OUR_CHAINS
from kilo.netctl.firewall.members import Interval
from kilo.netctl.firewall.nft_expressions import Form
from kilo.netctl.firewall.nft_intervals import intervals
from kilo.netctl.firewall.nft_layout import CHAINS, HOST_TABLES, SETS, TABLE, set_name
from kilo.netctl.firewall.nft_messages import (
    GETRULE,
    GETSET,
    GETSETELEM,
    GETTABLE,
    ChainInfo,
    of_table,
    parse_bounds,
    parse_chain,
    parse_rule,
    parse_set,
    table_flags,
)
from kilo.netctl.firewall.nft_socket import ABSENT, NftSocket
from kilo.netctl.firewall.rules import OUR_COMMENTS
from kilo.netctl.netlink.socket import KernelError

_MARKS = (OUR_CHAINS.encode(), OUR_COMMENTS.encode())
_TRIES = 3
_KINDS = {set_name(kind): kind for kind in SETS}

HostChain = tuple[str, str]
"""Table and name of a chain that is not in our table."""
Elements = Mapping[FirewallSet, set[Interval]]


class HostRule(NamedTuple):
    """A rule in a base chain of the host's; ``form`` None: not ours."""

    handle: int
    form: Form | None


class Left(NamedTuple):
    """A chain called KILO-…: how many rules it has, and how many rules of others jump to it."""

    rules: int
    others: int


@dataclass
class Found:
    """What there is, of one IP version.

    ``sound``: nothing is in our table but chains and sets as we declare them; else it has to be
    made anew. ``host``: the base chains of the host's tables. ``left``: the chains called KILO-….
    """

    table: bool = False
    sound: bool = True
    sets: dict[FirewallSet, set[Interval]] = field(default_factory=dict)
    chains: dict[str, list[Form]] = field(default_factory=dict)
    host: dict[HostChain, list[HostRule]] = field(default_factory=dict)
    left: dict[HostChain, Left] = field(default_factory=dict)


def read(netlink: NftSocket, version: int, known: Elements | None = None) -> Found:
    """What there is now. The elements of sets are as in ``known``, if that is given.

    Raises TemporaryError, also if others change too much meanwhile.
    """
    for _ in range(_TRIES):
        before = netlink.generation()
        try:
            found = _read(netlink, version, known)
        except KernelError as e:
            if e.errno != errno.ENOENT:  # gone between two questions
                raise
        else:
            if netlink.generation() == before:
                return found
    raise TemporaryError("nftables changes faster than it can be read")


def _read(netlink: NftSocket, version: int, known: Elements | None) -> Found:
    found = Found()
    chains = [chain for message in netlink.chains(version) if _may_matter(chain := parse_chain(message))]
    _read_table(netlink, version, found, known)
    own = {chain.name: chain.hook for chain in chains if chain.table == TABLE}
    found.sound = found.sound and all(CHAINS.get(name) == hook for name, hook in own.items())
    if own:
        found.chains = {name: [] for name in own}
        for message in netlink.dump(GETRULE, of_table(version, TABLE), optional=True):
            rule = parse_rule(message)
            if rule.table == TABLE and rule.form is not None:
                found.chains.setdefault(rule.chain, []).append(rule.form)
    _read_host(netlink, version, found, [chain for chain in chains if chain.table in HOST_TABLES])
    return found


def _may_matter(chain: ChainInfo) -> bool:
    if chain.table == TABLE:
        return True
    return chain.table in HOST_TABLES and (chain.hook is not None or chain.name.startswith(OUR_CHAINS))


def _read_table(netlink: NftSocket, version: int, found: Found, known: Elements | None) -> None:
    try:
        message = netlink.ask(GETTABLE, of_table(version, TABLE))[0]
    except KernelError as e:
        if e.errno != errno.ENOENT and e.errno not in ABSENT:
            raise
        return
    found.table = True
    found.sound = table_flags(message) == 0
    for message in netlink.dump(GETSET, of_table(version, TABLE), optional=True):
        info = parse_set(version, message)
        kind = _KINDS.get(info.name)
        if info.table != TABLE:
            continue
        if kind is None or not info.declared:
            found.sound = False
        elif known is not None:
            found.sets[kind] = known.get(kind, set())
        else:
            elements = netlink.dump(GETSETELEM, of_table(version, TABLE, info.name))
            found.sets[kind] = intervals(parse_bounds(version, elements))


def _read_host(netlink: NftSocket, version: int, found: Found, chains: Iterable[ChainInfo]) -> None:
    sizes: dict[HostChain, int] = {}
    others: dict[HostChain, int] = {}
    forms: list[tuple[str, Form]] = []
    for chain in chains:
        place = (chain.table, chain.name)
        rules = _rules(netlink, version, chain)
        if chain.name.startswith(OUR_CHAINS):
            sizes[place] = len(rules)
            others[place] = chain.use - len(rules)
        else:
            rules = [rule if _is_ours(rule) else HostRule(rule.handle, None) for rule in rules]
            found.host[place] = rules
        forms += [(chain.table, rule.form) for rule in rules if rule.form is not None]
    for table, form in forms:
        if (table, form.target) in others:
            others[table, form.target] -= 1
    found.left = {place: Left(sizes[place], max(0, others[place])) for place in sizes}


def _rules(netlink: NftSocket, version: int, chain: ChainInfo) -> list[HostRule]:
    body = of_table(version, chain.table, chain.name)
    rules = [parse_rule(message, _MARKS) for message in netlink.dump(GETRULE, body, optional=True)]
    return [HostRule(r.handle, r.form) for r in rules if (r.table, r.chain) == (chain.table, chain.name)]


def _is_ours(rule: HostRule) -> bool:
    form = rule.form
    return form is not None and (form.comment.startswith(OUR_COMMENTS) or form.target.startswith(OUR_CHAINS))
