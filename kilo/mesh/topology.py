"""Who forms a segment with whom, who leads it, and which WireGuard address it gets.

Every agent of a mesh, the Go one included, computes the same topology of the same nodes, without a
word between them: order, tie-breaks and quirks here are squat/kilo's (pkg/mesh/topology.go), and
the conformance cases hold them in place. Pure; nothing depends on the order of the arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from kilo.errors import KiloError
from kilo.mesh.overlap import NetworkIndex
from kilo.model.net import address_text, bounds, is_public, single, text_of
from kilo.model.node import Endpoint, Node, Peer, UDPAddress
from kilo.model.settings import Settings
from kilo.model.topology import Segment

LOCATION = "location:"
NODE = "node:"


class CannotPlan(KiloError):
    """There is nothing to plan with, or the subnet has run out of addresses."""


@dataclass(frozen=True)
class Topology:
    """The mesh as ``hostname`` sees it.

    ``wireguard_cidr`` (Interface form): the address of the local WireGuard interface, or ``subnet``
    itself where the local node does not lead. ``members``: all nodes, by name. ``peers`` are without
    allowed IPs that an earlier one has. ``discovered``: endpoints that nodes have learnt of others, by
    public key; None where one was lost. ``shared``: allowed IPs that several peers have, with all their
    names, who got it first. ``fallen``: location, allowed location IP, and who has what it overlaps, of
    those that do not stand.
    """

    hostname: str
    location: str
    leader: bool
    wireguard_cidr: str
    subnet: str
    local: Node
    members: Mapping[str, Node]
    segments: tuple[Segment, ...]
    peers: tuple[Peer, ...]
    discovered: Mapping[str, UDPAddress | None]
    shared: Mapping[str, tuple[str, ...]]
    fallen: tuple[tuple[str, str, str], ...]

    @property
    def own(self) -> Segment:
        """The local node's segment."""
        return next(s for s in self.segments if s.location == self.location)

    def endpoint_of(self, other: Segment | Peer) -> Endpoint | None:
        """Where ``other`` receives packets: who has a keepalive may have moved, and been found again."""
        if not other.persistent_keepalive:
            return other.endpoint
        key = other.key if isinstance(other, Segment) else other.public_key
        if key not in self.discovered:
            return other.endpoint
        return _endpoint(self.discovered[key])


def _endpoint(address: UDPAddress | None) -> Endpoint | None:
    if address is None:
        return None
    host = f"{address.ip}%{address.zone}" if address.zone else address.ip
    return Endpoint(host, address.port, address.ip)


def location_of(node: Node, granularity: str) -> str:
    """The segment to which a node belongs; one without a private address is a segment of its own."""
    if granularity == "full" or not node.internal_ip:
        return NODE + node.name
    return LOCATION + node.location


def build(nodes: Iterable[Node], peers: Iterable[Peer], settings: Settings) -> Topology:
    """The topology of the nodes and peers that take part, the local node among them.

    Raises CannotPlan if the local node is not there or if ``settings.subnet`` is too small.
    """
    groups: dict[str, list[Node]] = {}
    members = {node.name: node for node in nodes}
    for node in members.values():
        groups.setdefault(location_of(node, settings.mesh_granularity), []).append(node)
    local = members.get(settings.hostname)
    if local is None:
        raise CannotPlan(f"node {settings.hostname} does not take part in the mesh")
    located = sorted(groups.items())
    for _, group in located:
        group.sort(key=_name)
    distinct, shared = _without_duplicate_ips(sorted(peers, key=_name))
    segments = _segments(located, settings.subnet)
    fallen: list[tuple[str, str, str]] = []
    if any(segment.allowed_location_ips for segment in segments):
        court = _LocationIPs(segments, distinct, fallen)
        segments = [court.judge(segment) for segment in segments]
    location = location_of(local, settings.mesh_granularity)
    own = next(s for s in segments if s.location == location)
    leader = own.hostnames[own.leader] == settings.hostname
    address = f"{own.wireguard_ip}/{settings.subnet.partition('/')[2]}"
    return Topology(
        hostname=settings.hostname,
        location=location,
        leader=leader,
        wireguard_cidr=address if leader else settings.subnet,
        subnet=settings.subnet,
        local=local,
        members=members,
        segments=tuple(segments),
        peers=distinct,
        discovered=_discovered(local, located),
        shared=shared,
        fallen=tuple(fallen),
    )


def _name(of: Node | Peer) -> str:
    return of.name


def find_leader(nodes: Sequence[Node]) -> int:
    """Index of the leader of nodes sorted by name: a volunteer before others, a public address first."""
    volunteer, public = -1, -1
    for i, node in enumerate(nodes):
        is_reachable = node.endpoint is not None and is_public(node.endpoint.ip)
        if node.leader and is_reachable:
            return i
        if node.leader and volunteer < 0:
            volunteer = i
        if is_reachable and public < 0:
            public = i
    return volunteer if volunteer >= 0 else max(public, 0)


def _segments(located: Sequence[tuple[str, Sequence[Node]]], subnet: str) -> list[Segment]:
    """A segment for each group, and for each the next address of ``subnet``."""
    version, first, last = bounds(subnet)
    if len(located) > last - first:
        raise CannotPlan(
            f"the subnet {subnet} has {last - first} addresses for {len(located)} segments;"
            " a wider --subnet is needed, the same on every node"
        )
    return [
        _segment(location, nodes, text_of(version, number))
        for number, (location, nodes) in enumerate(located, first + 1)
    ]


def broadcast_of(subnet: str) -> str:
    """The address to which every host of ``subnet`` listens, "" if it has none: the last to be given out.

    No route can go by it.
    """
    version, first, last = bounds(subnet)
    return text_of(version, last) if version == 4 and last - first > 1 else ""


def _segment(location: str, nodes: Sequence[Node], wireguard_ip: str) -> Segment:
    """The segment of nodes sorted by name."""
    index = find_leader(nodes) if len(nodes) > 1 else 0
    leader = nodes[index]
    allowed: list[str] = []
    private: list[str] = []
    for node in nodes:
        allowed.append(node.subnet)
        if node.internal_ip:
            address = address_text(node.internal_ip)
            allowed.append(single(address))
            private.append(address)
    allowed.append(single(wireguard_ip))
    claimed = {network for node in nodes for network in node.allowed_location_ips}
    return Segment(
        location=location,
        hostnames=tuple([node.name for node in nodes]),
        cidrs=tuple([node.subnet for node in nodes]),
        private_ips=tuple(private),
        leader=index,
        key=leader.key,
        wireguard_ip=wireguard_ip,
        endpoint=leader.endpoint,
        allowed_ips=tuple(allowed),
        allowed_location_ips=tuple(sorted(claimed)),
        cni_compatibility_ips=tuple([node.cni_compatibility_ip for node in nodes]),
        persistent_keepalive=leader.persistent_keepalive,
    )


class _LocationIPs:
    """Which allowed location IPs stand: not those that an address of the mesh already covers, nor
    those that overlap another location's or a peer's.

    Asked segment by segment, in order: what an earlier segment lost no longer stands in the way,
    what a later one claims does, and only WireGuard addresses handed out so far count. ``fallen``
    takes those that do not stand, as in Topology.
    """

    def __init__(
        self, segments: Sequence[Segment], peers: Sequence[Peer], fallen: list[tuple[str, str, str]]
    ) -> None:
        self._fallen = fallen
        self._claimed, self._allowed, self._peers = NetworkIndex(), NetworkIndex(), NetworkIndex()
        for segment in segments:
            for network in segment.allowed_location_ips:
                self._claimed.add(network, segment.location)
            for network in segment.allowed_ips[:-1]:
                self._allowed.add(network, segment.location)
        for peer in peers:
            for network in peer.allowed_ips:
                self._peers.add(network, f"peer {peer.name}")

    def judge(self, segment: Segment) -> Segment:
        """The next segment, with those of its allowed location IPs that stand."""
        location = segment.location
        self._allowed.add(segment.allowed_ips[-1], location)
        kept, fallen = [], []
        for network in segment.allowed_location_ips:
            other = self._in_the_way(network, location)
            if other is None:
                kept.append(network)
            else:
                fallen.append((location, network, other))
        for _, network, _ in fallen:
            self._claimed.discard(network, location)
        self._fallen += fallen
        return msgspec.structs.replace(segment, allowed_location_ips=tuple(kept))

    def _in_the_way(self, network: str, location: str) -> str | None:
        """Who has what ``network`` must not overlap, if anybody has."""
        other = self._claimed.overlapping(network, besides=location)
        if other is None:
            other = self._allowed.holding(single(address_text(network)))
        return self._peers.overlapping(network) if other is None else other


def _without_duplicate_ips(
    peers: Sequence[Peer],
) -> tuple[tuple[Peer, ...], dict[str, tuple[str, ...]]]:
    """Peers without the allowed IPs that an earlier one has, or that they name twice; and who shares what."""
    holders: dict[str, str] = {}
    shared: dict[str, tuple[str, ...]] = {}
    distinct = []
    for peer in peers:
        named = dict.fromkeys(peer.allowed_ips)
        fresh = tuple([n for n in named if n not in holders])
        for network in named.keys() - fresh:
            shared[network] = (*shared.get(network, (holders[network],)), peer.name)
        holders.update(dict.fromkeys(fresh, peer.name))
        if fresh != peer.allowed_ips:
            peer = msgspec.structs.replace(peer, allowed_ips=fresh)
        distinct.append(peer)
    return tuple(distinct), shared


def _discovered(local: Node, located: Sequence[tuple[str, Sequence[Node]]]) -> dict[str, UDPAddress | None]:
    """What the local node has learnt itself first, then whoever comes first in the topology."""
    discovered = dict(local.discovered_endpoints)
    for _, nodes in located:
        for node in nodes:
            for key, address in node.discovered_endpoints.items():
                discovered.setdefault(key, address)
    return discovered
