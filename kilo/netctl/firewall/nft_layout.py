"""What the firewall is in nf_tables: a table of ours, and rules in the chains that iptables-nft uses.

Pure. The same for IPv4 and IPv6, and for 3 nodes and for 5,000.

    table ip kilo, ip6 kilo
      postrouting (nat)     to no-masquerade-to -> return
                            from masquerade-from, or to masquerade-to -> masquerade
      input (filter)        IPIP, not from ipip-accept-from -> drop
      forward (filter)      TCP's SYN in or out by a device of ours -> maxseg as the path allows
    table ip filter, ip6 filter: where iptables-nft has made the chain
      FORWARD (first)       from forward-accept-from, or to forward-accept-to -> accept
      INPUT (last)          IPIP from ipip-accept-from -> accept

A drop or a masquerade counts wherever it stands. An accept counts for its own chain alone, so it
goes to where somebody's policy or rule may drop. iptables-nft takes a rule that looks into a set of
nf_tables for one without conditions, so there our rules look into ipsets, as iptables' own can do.
Called by the nft_… modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from functools import lru_cache
from typing import Literal, NamedTuple

from kilo.model.plan import Firewall, FirewallSet
from kilo.netctl.firewall.layout import set_match
from kilo.netctl.firewall.nft_expressions import (
    COUNTER,
    MASQUERADE,
    Expression,
    Rule,
    Side,
    clamped_to_path,
    in_network,
    in_set,
    passing,
    protocol,
    syn,
    verdict,
    xt_comment,
    xt_match,
)
from kilo.netctl.firewall.nft_messages import Hook
from kilo.netctl.firewall.rules import IPIP_PROTOCOL, OUR_COMMENTS, TCP_PROTOCOL, WAYS

TABLE = "kilo"
HOST_TABLES = ("nat", "filter")
"""The tables of iptables-nft in which we, or the Go agent, have rules."""
_BEFORE_SRCNAT = 99
_POSTROUTING = Hook("nat", 4, _BEFORE_SRCNAT)
_INPUT = Hook("filter", 1, 0)
_MANGLE = -150
_FORWARD = Hook("filter", 2, _MANGLE)

Place = Literal["first", "last"]
Conditions = list[tuple[Expression, ...]]
Selector = Callable[[FirewallSet, Side], Conditions]
"""The conditions, one for each rule, under which a packet's source or destination is in a set."""


class Chain(NamedTuple):
    """A base chain of our own table, and all its rules."""

    hook: Hook
    rules: tuple[Rule, ...]


class OwnTable(NamedTuple):
    """Our table: which of the plan's sets it has, and its chains by name."""

    sets: tuple[FirewallSet, ...]
    chains: Mapping[str, Chain]


NO_TABLE = OwnTable((), {})


class HostRules(NamedTuple):
    """Our rules in a chain of the host's: before, or after, those that it has."""

    place: Place
    rules: tuple[Rule, ...]


def set_name(kind: FirewallSet) -> str:
    return kind.replace("_", "-")


SETS: tuple[FirewallSet, ...] = ("no_masquerade_to", "ipip_accept_from", "masquerade_to", "masquerade_from")
"""All that our own table may have, exceptions before what they are exceptions from."""
CHAINS: Mapping[str, Hook] = {"postrouting": _POSTROUTING, "input": _INPUT, "forward": _FORWARD}
HOST_SETS: Mapping[str, tuple[FirewallSet, ...]] = {
    "FORWARD": ("forward_accept_from", "forward_accept_to"),
    "INPUT": ("ipip_accept_from",),
}
"""By chain of the host's table filter, the sets into which our rules there look."""


@lru_cache(8)
def own_table(version: int, policy: Firewall | None, devices: tuple[str, ...]) -> OwnTable:
    """Our table, as ``policy`` asks for it; None asks for none. ``devices``: by name."""
    if policy is None:
        return NO_TABLE
    sets = tuple(kind for kind in SETS if kind != "ipip_accept_from" or policy.ipip_guard)
    chains = {
        "postrouting": Chain(_POSTROUTING, _masquerading(version)),
        "forward": Chain(_FORWARD, _clamping(devices)),
    }
    if policy.ipip_guard:
        stranger = in_set(version, "src", set_name("ipip_accept_from"), inverted=True)
        guard = Rule(
            (*protocol(IPIP_PROTOCOL), *stranger, verdict("drop")),
            f"{OUR_COMMENTS} IPIP from outside the location",
        )
        chains["input"] = Chain(_INPUT, (guard,))
    return OwnTable(sets, chains)


def _masquerading(version: int) -> tuple[Rule, ...]:
    return (
        Rule(
            (*in_set(version, "dst", set_name("no_masquerade_to")), verdict("return")),
            f"{OUR_COMMENTS} known here: no masquerade",
        ),
        Rule(
            (*in_set(version, "src", set_name("masquerade_from")), MASQUERADE),
            f"{OUR_COMMENTS} masquerade what leaves the mesh",
        ),
        Rule(
            (*in_set(version, "dst", set_name("masquerade_to")), MASQUERADE),
            f"{OUR_COMMENTS} masquerade towards allowed location IPs",
        ),
    )


def _clamping(devices: tuple[str, ...]) -> tuple[Rule, ...]:
    """The peers' ends are told too: an end that knows nothing of the tunnel cannot tell by itself."""
    first = (*protocol(TCP_PROTOCOL), *syn(), *clamped_to_path())
    said = f"{OUR_COMMENTS} what TCP may send at once"
    return tuple(Rule((*passing(way, device), *first), said) for device in devices for way in WAYS)


def wanted_in_host(policy: Firewall | None, chain: str) -> bool:
    """Whether ``policy`` asks for rules in this chain of the host's table filter."""
    if policy is None:
        return False
    return (chain == "FORWARD" and policy.forward) or (chain == "INPUT" and policy.ipip_guard)


def host_rules(policy: Firewall | None, chain: str, select: Selector) -> HostRules:
    """Our rules in a chain of the host's table filter, of the IP version that ``select`` is for."""
    if not wanted_in_host(policy, chain):
        return HostRules("first", ())
    if chain == "INPUT":
        rules = _accepting(select("ipip_accept_from", "src"), "IPIP from the location", IPIP_PROTOCOL)
        return HostRules("last", rules)
    return HostRules(
        "first",
        (
            *_accepting(select("forward_accept_from", "src"), "forwarded from the mesh"),
            *_accepting(select("forward_accept_to", "dst"), "forwarded to the mesh"),
        ),
    )


def _accepting(conditions: Conditions, text: str, number: int = 0) -> tuple[Rule, ...]:
    """Rules as iptables-nft writes them, so that it can read, save and restore them."""
    end = (xt_comment(f"{OUR_COMMENTS} {text}"), COUNTER, verdict("accept"))
    start = protocol(number) if number else ()
    return tuple(Rule((*start, *condition, *end)) for condition in conditions)


def by_ipset(indexes: Mapping[FirewallSet, int]) -> Selector:
    """One rule for a set, which has its place in ``indexes``."""

    def select(kind: FirewallSet, side: Side) -> Conditions:
        match = set_match(indexes[kind], side)
        return [(xt_match(match.name, match.revision, match.data),)]

    return select


def by_address(version: int, members: Mapping[FirewallSet, Set[bytes]]) -> Selector:
    """One rule for each member, sorted, so that the same members make the same rules."""

    def select(kind: FirewallSet, side: Side) -> Conditions:
        return [in_network(version, side, member) for member in sorted(members[kind])]

    return select
