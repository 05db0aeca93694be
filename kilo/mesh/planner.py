"""From everything the planner is told to everything it says: one pure function, ``plan``.

The local node is planned from what this host is found to be, not from what its annotations say it
was, so a node without any annotation takes part at once. What two others claim at once is given to
the first, or to the local segment, and the conflict is reported: the kernel would give it to the last,
and then every pass would find a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from kilo.mesh.addresses import HostAddresses, assigned_here, cilium_address, detect, underlay_mtu
from kilo.mesh.describe import peer_views
from kilo.mesh.firewall import firewall
from kilo.mesh.routes import local_routes, routes
from kilo.mesh.topology import CannotPlan, Topology, build
from kilo.model.host import HostFacts, WireGuardPeerState
from kilo.model.net import bounds, canonical_network, ip_of, single, text_of
from kilo.model.node import Announcement, Endpoint, Node, Peer, UDPAddress
from kilo.model.plan import (
    CniTarget,
    Firewall,
    Interface,
    PlanItem,
    PlannedPeer,
    SetEntry,
    Summary,
    Tunnel,
)
from kilo.model.settings import Settings
from kilo.model.topology import Segment, TopologyHead, TopologyItem

WIREGUARD_OVERHEAD = 80
"""Bytes that WireGuard adds to a packet over IPv6."""
MIN_MTU = 1280
DEFAULT_MTU = 1420
MAX_KEEPALIVE = 65535


@dataclass(frozen=True)
class Inputs:
    """All that a plan depends on.

    ``local``: this host's node as the cluster has it. ``nodes``: those that take part, by name (the
    local one may be among them and is not looked at). ``wireguard``: peers of the device by public
    key, None while nobody has looked.
    """

    local: Node
    nodes: Mapping[str, Node]
    peers: Mapping[str, Peer]
    host: HostFacts
    wireguard: Mapping[str, WireGuardPeerState] | None
    settings: Settings


@dataclass(frozen=True)
class Planned:
    """All that a plan says. ``conflicts``: by a stable key, what two claim at once, for a person."""

    items: dict[str, PlanItem]
    announcement: Announcement
    cni: CniTarget | None
    view: dict[str, TopologyItem]
    summary: Summary
    conflicts: dict[str, str]


def plan(inputs: Inputs) -> Planned:
    """What this host needs. Raises CannotPlan, which names what is missing."""
    settings, host = inputs.settings, inputs.host
    addresses = detect(host, settings.internal_cidrs)
    learnt = inputs.local.discovered_endpoints
    if inputs.wireguard is not None:
        learnt = learn(inputs.nodes.values(), inputs.peers.values(), inputs.wireguard)
    local = local_node(inputs.local, host, addresses, settings)
    local = msgspec.structs.replace(local, discovered_endpoints=learnt)
    nodes = {**inputs.nodes, local.name: local}
    topology = build(nodes.values(), inputs.peers.values(), settings)
    conflicts: dict[str, str] = {}
    mtu = mtu_of(host, settings)
    interface = _interface(topology, host, addresses, mtu)
    items: dict[str, PlanItem] = {interface.key: interface}
    items.update((peer.key, peer) for peer in _peers(topology, conflicts))
    _add_routes(topology, settings, items)
    _add_firewall(topology, settings, items)
    if tunnel := _tunnel(topology, settings):
        items[tunnel.key] = tunnel
    return Planned(
        items=items,
        announcement=_announcement(topology, settings),
        cni=CniTarget(local.subnet, mtu) if settings.cni else None,
        view=_view(topology),
        summary=Summary(
            generation=0,
            location=topology.location,
            leader=topology.leader,
            nodes=len(nodes),
            peers=len(topology.peers),
            segments=len(topology.segments),
        ),
        conflicts=conflicts,
    )


def local_node(node: Node, host: HostFacts, addresses: HostAddresses, settings: Settings) -> Node:
    """The local node as it is: forced values of its annotations, then what was detected.

    Raises CannotPlan.
    """
    if not node.subnet:
        raise CannotPlan(f"node {node.name} has no pod CIDR (spec.podCIDR)")
    if not host.public_key:
        raise CannotPlan("the WireGuard key of this host is not known")
    endpoint = node.endpoint if node.forced_endpoint else None
    if endpoint is None:
        address = addresses.public
        if settings.prioritise_private_addresses and addresses.private:
            address = addresses.private
        if not address:
            raise CannotPlan(
                "no address of this host can be its endpoint: none but loopback and link-local ones"
                " is assigned; the annotation kilo.squat.ai/force-endpoint can name one"
            )
        endpoint = Endpoint(ip_of(address), settings.port, ip_of(address))
    internal_ip = node.internal_ip if node.forced_internal_ip else addresses.private
    return msgspec.structs.replace(
        node,
        key=host.public_key,
        endpoint=endpoint,
        internal_ip="" if node.no_internal_ip else internal_ip,
        cni_compatibility_ip=cilium_address(host) if settings.compatibility == "cilium" else "",
        granularity=settings.mesh_granularity,
    )


def learn(
    nodes: Iterable[Node], peers: Iterable[Peer], wireguard: Mapping[str, WireGuardPeerState]
) -> dict[str, UDPAddress | None]:
    """Where WireGuard has found those that have a keepalive, so that they can be told to others."""
    keys = [node.key for node in nodes if node.persistent_keepalive]
    keys += [peer.public_key for peer in peers if peer.persistent_keepalive]
    found: dict[str, UDPAddress | None] = {}
    for key in keys:
        state = wireguard.get(key)
        if state is not None and (address := learnt_of(state)) is not None:
            found[key] = address
    return found


def learnt_of(state: WireGuardPeerState) -> UDPAddress | None:
    """A peer's endpoint, if it has proved to be there: it is only a guess before the first handshake."""
    if not state.last_handshake or not state.endpoint_ip:
        return None
    return UDPAddress(state.endpoint_ip, state.endpoint_port)


def mtu_of(host: HostFacts, settings: Settings) -> int:
    """Bytes; as the flag says, or for ``auto`` what the underlay leaves."""
    if settings.mtu:
        return settings.mtu
    underlay = underlay_mtu(host)
    return max(underlay - WIREGUARD_OVERHEAD, MIN_MTU) if underlay else DEFAULT_MTU


def _interface(topology: Topology, host: HostFacts, addresses: HostAddresses, mtu: int) -> Interface:
    """The port is that of the endpoint that the node announces, as in the Go agent."""
    local = topology.local
    private = local.internal_ip if assigned_here(host, local.internal_ip) else addresses.private
    return Interface(
        up=topology.leader,
        mtu=mtu,
        listen_port=local.endpoint.port if local.endpoint else 0,
        address=topology.wireguard_cidr if topology.leader else "",
        private_ip=private,
        subnet=topology.subnet,
    )


def _peers(topology: Topology, conflicts: dict[str, str]) -> list[PlannedPeer]:
    """The peers of the device; none where it is down. Each network goes to one of them."""
    if not topology.leader:
        return []
    own = topology.own
    keys = {topology.local.key: own.location}
    claims = dict.fromkeys(own.allowed_ips, own.location)
    keepalive = topology.local.persistent_keepalive
    if not 0 <= keepalive <= MAX_KEEPALIVE:
        keepalive = 0
    found = []
    others: list[Segment | Peer] = [s for s in topology.segments if s.location != own.location]
    for other in (*others, *topology.peers):
        name, key, networks = _claims(other)
        first = keys.setdefault(key, name)
        if first != name:
            conflicts[f"key/{key}"] = f"{first} and {name} have the same public key {key}; the first counts"
            continue
        allowed = []
        for network in networks:
            holder = claims.setdefault(network, name)
            if holder == name:
                allowed.append(network)
            else:
                conflicts[f"network/{network}"] = f"{holder} and {name} claim {network}; the first counts"
        found.append(_planned(topology, other, tuple(dict.fromkeys(allowed)), keepalive))
    return found


def conflicts(topology: Topology) -> dict[str, str]:
    """What two claim at once, by a stable key, for a person."""
    found: dict[str, str] = {}
    _peers(topology, found)
    return found


def _claims(other: Segment | Peer) -> tuple[str, str, Iterable[str]]:
    """Name, key and networks of a segment or peer."""
    if isinstance(other, Segment):
        extra = other.allowed_location_ips
        networks = (*other.allowed_ips, *map(canonical_network, extra)) if extra else other.allowed_ips
        return other.location, other.key, networks
    return f"peer {other.name}", other.public_key, map(canonical_network, other.allowed_ips)


def _planned(
    topology: Topology, other: Segment | Peer, allowed_ips: tuple[str, ...], keepalive: int
) -> PlannedPeer:
    endpoint = topology.endpoint_of(other)
    if endpoint is not None and not (endpoint.ip and 0 < endpoint.port <= 65535):
        endpoint = None
    return PlannedPeer(
        public_key=other.public_key if isinstance(other, Peer) else other.key,
        allowed_ips=allowed_ips,
        endpoint_ip=endpoint.ip if endpoint else "",
        endpoint_port=endpoint.port if endpoint else 0,
        keepalive=keepalive,
        preshared_key=other.preshared_key if isinstance(other, Peer) else None,
        roams=other.persistent_keepalive != 0,
    )


def _add_routes(topology: Topology, settings: Settings, items: dict[str, PlanItem]) -> None:
    """Nothing that somebody far away claims leads away from the local segment's own addresses."""
    found, rules = routes(topology, settings)
    own = topology.own
    near = {*own.cidrs, *map(single, own.private_ips)}
    mine = set(local_routes(topology, settings))
    for route in found:
        if route.dst in near and not route.table and route not in mine:
            continue
        if (dst := canonical_network(route.dst)) != route.dst:
            route = msgspec.structs.replace(route, dst=dst)
        items.setdefault(route.key, route)
    for rule in rules:
        items.setdefault(rule.key, rule)


def _add_firewall(topology: Topology, settings: Settings, items: dict[str, PlanItem]) -> None:
    wall = firewall(topology, settings)
    rules = Firewall(wall.ipip_guard, settings.cni and settings.iptables_forward_rules)
    items[rules.key] = rules
    for name, members in wall.sets.items():
        for network in map(canonical_network, members):
            items[f"entry/{name}/{network}"] = SetEntry(name, network)


def _tunnel(topology: Topology, settings: Settings) -> Tunnel | None:
    """Its address is the first one of the pod CIDR; another CNI's device has its own already."""
    if settings.encapsulate == "never" or not topology.local.internal_ip:
        return None
    if settings.compatibility == "flannel":
        return Tunnel("flannel", "")
    address = ""
    if settings.local:
        version, first, last = bounds(topology.local.subnet)
        address = single(text_of(version, min(first + 1, last)))
    return Tunnel("cilium" if settings.compatibility == "cilium" else "ipip", address)


def _announcement(topology: Topology, settings: Settings) -> Announcement:
    local = topology.local
    return Announcement(
        endpoint=local.endpoint,
        internal_ip=local.internal_ip,
        key=local.key,
        wireguard_ip=topology.wireguard_cidr if topology.leader else "",
        discovered_endpoints={k: a for k, a in local.discovered_endpoints.items() if a is not None},
        granularity=settings.mesh_granularity,
        cni_compatibility_ip=local.cni_compatibility_ip,
    )


def _view(topology: Topology) -> dict[str, TopologyItem]:
    view: dict[str, TopologyItem] = {
        "head": TopologyHead(topology.hostname, topology.location, topology.leader, topology.subnet)
    }
    view.update((f"segment/{segment.location}", segment) for segment in topology.segments)
    view.update((f"peer/{peer.name}", peer) for peer in peer_views(topology))
    return view
