"""Which rules the firewall has: a constant number of them, whatever the size of the mesh.

Pure. The addresses are in sets; where the kernel has no sets, there is one rule for each address
instead, and all else is the same. Called by the backends.

    nat      POSTROUTING   from masquerade_from, or to masquerade_to  -> KILO-NAT
             KILO-NAT      to no_masquerade_to -> RETURN; the rest    -> MASQUERADE
    mangle   FORWARD       TCP's SYN in or out by a device of ours   -> TCPMSS, as the path allows
    filter   FORWARD       from forward_accept_from, or to forward_accept_to -> ACCEPT
             INPUT         IPIP                                       -> KILO-IPIP
             KILO-IPIP     from ipip_accept_from -> ACCEPT; the rest  -> DROP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Literal, NamedTuple

from kilo.model.plan import Firewall, FirewallSet
from kilo.netctl.firewall.layout import (
    CLAMP_TO_PATH,
    FAMILIES,
    MASQUERADE,
    Entry,
    Match,
    addresses,
    comment,
    passing,
    set_match,
    syn_match,
)

OUR_COMMENTS = "Kilo:"
NAT, FILTER, MANGLE = "nat", "filter", "mangle"
TABLES = (NAT, FILTER, MANGLE)
IPIP_PROTOCOL, TCP_PROTOCOL = 4, 6

Side = Literal["src", "dst"]
Way = Literal["in", "out"]
"""By a device: that the packet came by, or goes by."""
WAYS: tuple[Way, ...] = ("in", "out")
Place = Literal["whole", "first", "last"]
"""The chain is all ours; or our rules in it go before, or after, those that it has."""


class Chain(NamedTuple):
    """The rules that we want in a chain, in their order."""

    place: Place
    rules: tuple[Entry, ...]


Layout = dict[str, Chain]
"""What is wanted in one table of one IP version, by chain. Chains of ours not in it go."""

Condition = tuple[bytes, tuple[Match, ...]]
Selector = Callable[[FirewallSet, Side], list[Condition]]
"""The conditions, one for each rule, under which a packet's source or destination is in a set."""


def by_set(version: int, indexes: Mapping[FirewallSet, int]) -> Selector:
    """One rule for a set, which has its place in ``indexes``."""
    anything = addresses(FAMILIES[version], "src", b"")

    def select(kind: FirewallSet, side: Side) -> list[Condition]:
        return [(anything, (set_match(indexes[kind], side),))]

    return select


def by_address(version: int, members: Mapping[FirewallSet, Set[bytes]]) -> Selector:
    """One rule for each member, sorted, so that the same members make the same rules."""

    def select(kind: FirewallSet, side: Side) -> list[Condition]:
        return [(addresses(FAMILIES[version], side, member), ()) for member in sorted(members[kind])]

    return select


def layout_of(
    table: str, version: int, policy: Firewall | None, devices: Sequence[str], select: Selector
) -> Layout:
    """The rules of one table that ``policy`` asks for; None asks for none. ``devices``: by name."""
    if policy is None:
        return {}
    if table == NAT:
        return _nat(version, select)
    if table == MANGLE:
        return {"FORWARD": Chain("first", tuple(_clamping(version, devices)))}
    layout: Layout = {}
    if policy.forward:
        layout["FORWARD"] = Chain(
            "first",
            (
                *_each(select("forward_accept_from", "src"), "forwarded from the mesh", "ACCEPT"),
                *_each(select("forward_accept_to", "dst"), "forwarded to the mesh", "ACCEPT"),
            ),
        )
    if policy.ipip_guard:
        layout |= _guard(version, select)
    return layout


def _nat(version: int, select: Selector) -> Layout:
    anything = addresses(FAMILIES[version], "src", b"")
    masquerade = Entry(anything, (_comment("masquerade the rest"),), "MASQUERADE", MASQUERADE[version])
    return {
        "POSTROUTING": Chain(
            "first",
            (
                *_each(select("masquerade_from", "src"), "masquerade what leaves the mesh", "KILO-NAT"),
                *_each(select("masquerade_to", "dst"), "masquerade towards allowed location IPs", "KILO-NAT"),
            ),
        ),
        "KILO-NAT": Chain(
            "whole",
            (*_each(select("no_masquerade_to", "dst"), "known here: no masquerade", "RETURN"), masquerade),
        ),
    }


def _clamping(version: int, devices: Sequence[str]) -> Iterator[Entry]:
    """The peers' ends are told too: an end that knows nothing of the tunnel cannot tell by itself."""
    said = _comment("what TCP may send at once")
    for device in devices:
        for way in WAYS:
            match = passing(FAMILIES[version], way, device, TCP_PROTOCOL)
            yield Entry(match, (syn_match(), said), "TCPMSS", CLAMP_TO_PATH)


def _guard(version: int, select: Selector) -> Layout:
    family = FAMILIES[version]
    ipip = addresses(family, "src", b"", IPIP_PROTOCOL)
    drop = Entry(addresses(family, "src", b""), (_comment("IPIP from anybody else"),), "DROP")
    return {
        "INPUT": Chain("last", (Entry(ipip, (_comment("IPIP"),), "KILO-IPIP"),)),
        "KILO-IPIP": Chain(
            "whole", (*_each(select("ipip_accept_from", "src"), "IPIP from the location", "ACCEPT"), drop)
        ),
    }


def _each(conditions: list[Condition], text: str, target: str) -> list[Entry]:
    return [Entry(ip, (*matches, _comment(text)), target) for ip, matches in conditions]


def _comment(text: str) -> Match:
    return comment(f"{OUR_COMMENTS} {text}")
