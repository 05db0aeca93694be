"""Who had what first: how it is decided who keeps what several claim, such as a public key.

Pure: what a host remembers comes in as an argument. A newcomer that claims what somebody else has, by
mistake or on purpose, does not get it on any host that has seen the other before. Used by
kilo.mesh.claims, and by the planner's process, which remembers.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kilo.model.host import WireGuardPeerState
from kilo.model.net import address_text, canonical_network, single
from kilo.model.node import Node, Peer
from kilo.model.plan import route_key

NEVER = 1 << 63
"""Later than anything was made: of who does not say when it was."""
MOST_PAST = 4096
"""Claims of those who are gone that are remembered in any case."""
MOST_NAMES = 8
"""Of those who had one thing after one another."""
Rank = tuple[int, int, int, bool]


@dataclass(frozen=True)
class Known:
    """What this host knows of who had what.

    ``owners``: public key or Network to the name_of all who had it in the plans before, the first first.
    ``wireguard``: peers that the device has, by public key. ``routed``: plan keys of the routes that the
    kernel has.
    """

    owners: Mapping[str, Sequence[str]] = field(default_factory=dict)
    wireguard: Mapping[str, WireGuardPeerState] = field(default_factory=dict)
    routed: Container[str] = ()

    def rank(self, key: str, member: Node | Peer) -> Rank:
        """Less is first, of those that claim the public key ``key``: who had it, then who is what the kernel
        has under it, then the older object, then a Node before a Peer."""
        is_peer = isinstance(member, Peer)
        found = 0 if key in self.owners else self._found(key, member)
        return self.place(key, name_of(member)), -found, member.created or NEVER, is_peer

    def place(self, claim: str, name: str) -> int:
        """How many had ``claim`` before the one of that name (as name_of) had it."""
        names = self.owners.get(claim, ())
        return names.index(name) if name in names else len(names)

    def holder(self, network: str) -> str:
        """The public key of the peer that the device sends ``network`` to; "" if there is none, or if an
        earlier plan says who has it."""
        return "" if network in self.owners else self._holders.get(network, "")

    @cached_property
    def _holders(self) -> dict[str, str]:
        return {network: key for key, state in self.wireguard.items() for network in state.allowed_ips}

    def _found(self, key: str, member: Node | Peer) -> int:
        """How much of ``member`` the kernel has: its endpoint says more than its routes, which others have
        a reason to keep, too."""
        state, endpoint = self.wireguard.get(key), member.endpoint
        found = 0
        if state is not None and endpoint is not None and endpoint.ip:
            found += 2 * ((state.endpoint_ip, state.endpoint_port) == (endpoint.ip, endpoint.port))
        networks = [member.subnet] if isinstance(member, Node) else map(canonical_network, member.allowed_ips)
        return found + any(route_key(network) in self.routed for network in networks)


NOTHING = Known()


def name_of(member: Node | Peer) -> str:
    """How a node or Peer is called, for a person and in ``owners``."""
    return f"node {member.name}" if isinstance(member, Node) else f"peer {member.name}"


def claims_of(member: Node | Peer) -> Iterator[str]:
    """What a node or Peer claims that nobody else can have: its public key, and Networks."""
    if isinstance(member, Peer):
        yield member.public_key
        yield from map(canonical_network, member.allowed_ips)
        return
    yield member.key
    yield member.subnet
    if member.internal_ip:
        yield single(address_text(member.internal_ip))


def contested(members: Iterable[Node | Peer]) -> tuple[set[str], set[str]]:
    """The public keys, and the Networks, that several claim. Of Peers among themselves the first by name
    has a network, so that what they share is not in dispute."""
    seen, keys, networks = set[str](), set[str](), set[str]()
    shared = set[str]()
    for member in members:
        key, *claimed = claims_of(member)
        (keys if key in seen else seen).add(key)
        if isinstance(member, Peer):
            shared.update(claimed)
        else:
            networks |= seen.intersection(claimed)
            seen.update(claimed)
    return keys, networks | (seen & shared)


class Memory:
    """Who had what, from plan to plan. Somebody who is away keeps his place: he may come back, and who has
    waited for his absence with a copy of his key has it only until then."""

    def __init__(self) -> None:
        self.owners: dict[str, tuple[str, ...]] = {}

    def remember(self, members: Iterable[Node | Peer], settled: Mapping[str, str]) -> None:
        """``members`` are in a plan; of what several claim, ``settled`` (Planned.owners) says who has it."""
        for member in members:
            name = name_of(member)
            for claim in claims_of(member):
                self._add(claim, settled.get(claim, name))
                self._add(claim, name)

    def _add(self, claim: str, name: str) -> None:
        names = self.owners.get(claim, ())
        if name not in names and len(names) < MOST_NAMES:
            self.owners[claim] = (*names, name)

    def forget(self, members: Collection[object]) -> None:
        """Once most of it is of the past, keep only what these, who are all, claim."""
        if len(self.owners) > MOST_PAST + 8 * len(members):
            now = [member for member in members if isinstance(member, Node | Peer)]
            claimed = {claim for member in now for claim in claims_of(member)}
            self.owners = {claim: names for claim, names in self.owners.items() if claim in claimed}
