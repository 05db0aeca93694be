"""From everything the planner is told to everything it says: one pure function, ``plan``.

The local node is planned from what this host is found to be, not from what its annotations say it
was, so a node without any annotation takes part at once. What two claim at once is settled by
kilo.mesh.claims, and reported: the kernel would give it to the last, and then every pass would find a
difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import msgspec

from kilo.mesh.addresses import (
    HostAddresses,
    assigned_here,
    cilium_address,
    detect,
    private_addresses,
    withheld,
)
from kilo.mesh.claims import Settled, label_of, limited, object_name, settle
from kilo.mesh.describe import peer_views
from kilo.mesh.discovered import DiscoveredEndpoints
from kilo.mesh.duplicates import duplicates
from kilo.mesh.firewall import firewall
from kilo.mesh.mtu import mtu_of
from kilo.mesh.owners import NOTHING, Known
from kilo.mesh.refused import refuse_unroutable
from kilo.mesh.routes import planned_routes
from kilo.mesh.topology import CannotPlan, Topology, broadcast_of, build
from kilo.mesh.unreachable import unused_endpoints
from kilo.model.host import HostFacts, WireGuardPeerState
from kilo.model.net import address_text, bounds, canonical_network, intersects, ip_of, single, text_of
from kilo.model.node import Announcement, ApiServer, Endpoint, Node, Peer, UDPAddress
from kilo.model.plan import (
    CniTarget,
    Firewall,
    Interface,
    PlanItem,
    PlannedPeer,
    Route,
    SetEntry,
    Summary,
    Tunnel,
)
from kilo.model.settings import Settings
from kilo.model.topology import PeerView, Segment, TopologyHead, TopologyItem

MAX_KEEPALIVE = 65535
_MOST_NAMES = 4
Share = tuple[Segment | Peer, tuple[str, ...]]
"""A segment or Peer that is reached by WireGuard, and the networks that it gets."""


@dataclass(frozen=True)
class Inputs:
    """All that a plan depends on.

    ``local``: this host's node as the cluster has it. ``nodes``: those that take part, by name (the
    local one may be among them and is not looked at). ``wireguard``: peers of the device by public
    key, None while nobody has looked. ``known``: who had what before.
    """

    local: Node
    nodes: Mapping[str, Node]
    peers: Mapping[str, Peer]
    host: HostFacts
    wireguard: Mapping[str, WireGuardPeerState] | None
    settings: Settings
    api: ApiServer | None = None
    known: Known = NOTHING


@dataclass(frozen=True)
class Planned:
    """All that a plan says.

    ``owners``: public keys and networks that several claim, and who gets each, as in Settled.
    ``conflicts``: by a stable key, for a person: those, networks that somebody does not get, addresses
    that the subnet has in common with others, and a forced internal IP that the host does not have.
    ``internal_ip``: the node's internal IP, or why it has none, for a person.
    """

    items: dict[str, PlanItem]
    announcement: Announcement
    cni: CniTarget | None
    view: dict[str, TopologyItem]
    summary: Summary
    owners: Mapping[str, str]
    conflicts: dict[str, str]
    internal_ip: str


def plan(inputs: Inputs) -> Planned:
    """What this host needs. Raises CannotPlan, which names what is missing."""
    settings, host = inputs.settings, inputs.host
    addresses = detect(host, settings.internal_cidrs, inputs.local.subnet)
    learnt = inputs.local.discovered_endpoints
    if inputs.wireguard is not None:
        learnt = learn(inputs.nodes.values(), inputs.peers.values(), inputs.wireguard)
    local = local_node(inputs.local, host, addresses, settings)
    nodes = {**inputs.nodes, local.name: local}
    discovered = DiscoveredEndpoints(nodes, inputs.peers.values(), settings)
    local = msgspec.structs.replace(local, discovered_endpoints=discovered.announced(learnt))
    nodes = {**nodes, local.name: local}
    accepted = refuse_unroutable(nodes.values(), inputs.peers.values())
    topology = discovered.accepted(build(accepted.nodes, accepted.peers, settings))
    settled = settle(topology, settings, host, inputs.known)
    interface = _interface(topology, host, addresses, settings)
    items: dict[str, PlanItem] = {interface.key: interface}
    unused = unused_endpoints(settled.topology, host)
    shares = [(other, settled.allowed_ips(other)) for other in _others(settled.topology)]
    items.update((peer.key, peer) for peer in _peers(settled, shares, unused))
    carried = set(topology.own.allowed_ips).union(*[networks for _, networks in shares])
    has_source = assigned_here(host, local.internal_ip)
    unreached = _add_routes(settled, settings, items, carried - settled.unroutable, has_source)
    _add_firewall(settled, settings, items)
    if tunnel := _tunnel(topology, settings):
        items[tunnel.key] = tunnel
    if inputs.api:
        items[inputs.api.key] = _api_server(inputs.api, inputs.nodes.values())
    twice = duplicates(topology, host)
    twice.withhold(items)
    conflicts = accepted.conflicts | settled.conflicts | _unreached(unreached, shares)
    conflicts |= discovered.conflicts | twice.conflicts
    conflicts |= {f"endpoint/{label}": text for label, text in unused.items()}
    if not has_source:
        conflicts |= _no_source(local)
    return Planned(
        items=items,
        announcement=_announcement(topology, settings),
        cni=CniTarget(local.subnet, interface.mtu) if settings.cni else None,
        view=_view(topology, settled.cloned),
        summary=Summary(
            generation=0,
            location=topology.location,
            leader=topology.leader,
            nodes=len(nodes),
            peers=len(topology.peers),
            segments=len(topology.segments),
        ),
        owners=settled.owners,
        conflicts=limited(conflicts),
        internal_ip=_internal_ip(local, host, settings.internal_cidrs),
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
            raise CannotPlan(_no_address(host, settings, node.subnet))
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


def _no_address(host: HostFacts, settings: Settings, pod_cidr: str) -> str:
    """Why no address of this host can be its endpoint, and what to do."""
    found = private_addresses(host, pod_cidr)
    if not found:
        return (
            "no address of this host can be its endpoint: none is assigned but loopback and link-local"
            " ones, and those of links that are down or of container networks;"
            " the annotation kilo.squat.ai/force-endpoint can name one"
        )
    shown = ", ".join(found[:_MOST_NAMES]) + (
        f" and {len(found) - _MOST_NAMES} more" if found[_MOST_NAMES:] else ""
    )
    return (
        f"no address of this host can be its endpoint: it has {shown}, and --internal-cidr="
        f"{','.join(settings.internal_cidrs)} holds none of them; give a network that holds one, or leave "
        "the flag out"
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


def _interface(
    topology: Topology, host: HostFacts, addresses: HostAddresses, settings: Settings
) -> Interface:
    """The port is that of the endpoint that the node announces, as in the Go agent."""
    local = topology.local
    private = local.internal_ip if assigned_here(host, local.internal_ip) else addresses.private
    return Interface(
        up=topology.leader,
        mtu=mtu_of(topology, host, private, settings),
        listen_port=local.endpoint.port if local.endpoint else 0,
        address=topology.wireguard_cidr if topology.leader else "",
        private_ip=private,
        subnet=topology.subnet,
    )


def _internal_ip(local: Node, host: HostFacts, internal_cidrs: Sequence[str]) -> str:
    """The internal IP of the local node, or why it has none."""
    if local.internal_ip:
        return address_text(local.internal_ip)
    if local.no_internal_ip:
        return "none, by the annotation kilo.squat.ai/force-internal-ip"
    found = withheld(host, internal_cidrs, local.subnet)
    if not found and internal_cidrs:
        return f"none: no private address of this host is in --internal-cidr {', '.join(internal_cidrs)}"
    if not found:
        return "none"
    names = [f"{ip_of(w.interface)} does not count ({w.link} {w.reason})" for w in found[:_MOST_NAMES]]
    if len(found) > _MOST_NAMES:
        names.append(f"{len(found) - _MOST_NAMES} more")
    annotation = f"kilo.squat.ai/force-internal-ip={found[0].interface}"
    return f"none: {', '.join(names)}; annotate node {local.name} with {annotation} if it is to count"


def _no_source(local: Node) -> dict[str, str]:
    """The conflict of a forced internal IP that is nobody's, as far as the host knows."""
    if not local.internal_ip:
        return {}
    ip = address_text(local.internal_ip)
    what = f"the annotation kilo.squat.ai/force-internal-ip says {ip}, which no link of this host has"
    return {"force-internal-ip": f"{what}: the kernel chooses the source address of routes"}


def _peers(settled: Settled, shares: Iterable[Share], unused: Collection[str]) -> list[PlannedPeer]:
    """The peers of the device; none where it is down. Each network goes to one of them.

    ``unused``: those (as label_of) whose endpoint no packet reaches.
    """
    topology = settled.topology
    if not topology.leader:
        return []
    keepalive = topology.local.persistent_keepalive
    if not 0 <= keepalive <= MAX_KEEPALIVE:
        keepalive = 0
    cloned = settled.cloned
    planned = []
    for other, allowed_ips in shares:
        if cloned and label_of(other) in cloned:
            continue
        endpoint = None if unused and label_of(other) in unused else topology.endpoint_of(other)
        planned.append(_planned(other, endpoint, allowed_ips, keepalive))
    return planned


def _others(topology: Topology) -> list[Segment | Peer]:
    """All that are reached by WireGuard, from this host or from its leader."""
    segments = [s for s in topology.segments if s.location != topology.location]
    return [*segments, *topology.peers]


def _planned(
    other: Segment | Peer, endpoint: Endpoint | None, allowed_ips: tuple[str, ...], keepalive: int
) -> PlannedPeer:
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
        name=object_name(other),
    )


def _add_routes(
    settled: Settled, settings: Settings, items: dict[str, PlanItem], carried: Set[str], has_source: bool
) -> list[Route]:
    """Without what others do not get here, and without gateways that the kernel would refuse.

    A route stands only with the WireGuard peer, here or on the leader, that carries it: ``carried`` has their
    networks, and those of the own segment. Returns the routes whose gateway is of another IP version.
    """
    unreached = []
    topology = settled.topology
    found, rules, within = planned_routes(topology, settings, has_source, settled.behind)
    subnet = canonical_network(topology.subnet) if topology.leader else ""
    broadcast = broadcast_of(topology.subnet)
    gone, ours = settled.gone, settled.ours
    mine = set(within) if gone or ours else set[Route]()
    lost = {s.wireguard_ip: settled.lost[s.location] for s in topology.segments if s.location in settled.lost}
    for route in found:
        dst = canonical_network(route.dst)
        if not route.table and (dst == subnet or dst in (ours if route in mine else gone)):
            continue
        if dst not in carried:
            continue
        if route.via in lost and dst in lost[route.via]:
            continue  # another segment has it, and a route of its own
        # WireGuard finds the peer by destination; any other device needs the gateway.
        if ":" in dst and route.via and ":" not in route.via and route.device != "wireguard":
            unreached.append(route)
            continue
        if broadcast and route.via == broadcast and route.device == "wireguard":
            route = msgspec.structs.replace(route, via="", onlink=False)
        if dst != route.dst:
            route = msgspec.structs.replace(route, dst=dst)
        items.setdefault(route.key, route)
    for rule in rules:
        items.setdefault(rule.key, rule)
    return unreached


def _unreached(routes: Collection[Route], shares: Iterable[Share]) -> dict[str, str]:
    """Conflicts of IPv6 networks that can only be reached by an IPv4 gateway."""
    if not routes:
        return {}
    owners = {network: object_name(other) for other, networks in shares for network in networks}
    found = {}
    for route in routes:
        dst = canonical_network(route.dst)
        name = owners.get(dst, "a node of this location")
        found[f"network/{dst}/gateway"] = (
            f"{name} has {dst}, which this host can reach only by {route.via}: an IPv6 route cannot go by an"
            " IPv4 gateway, so this host does without; give the nodes of this location IPv6 internal IPs, or"
            " use --mesh-granularity=full"
        )
    return found


def _add_firewall(settled: Settled, settings: Settings, items: dict[str, PlanItem]) -> None:
    """What is not reached through the mesh is masqueraded as everywhere else."""
    topology = settled.topology
    wall = firewall(topology, settings)
    pods = canonical_network(topology.local.subnet) if settings.cni else ""
    rules = Firewall(wall.ipip_guard, settings.cni and settings.iptables_forward_rules, pods)
    items[rules.key] = rules
    near = {*topology.own.allowed_ips} - settled.unroutable
    near |= {topology.local.subnet, *map(canonical_network, settings.service_cidrs)}
    # A leader's interface is connected to the subnet of WireGuard addresses, so they need no route.
    connected = topology.subnet if topology.leader else ""
    if connected:
        near.update([single(segment.wireguard_ip) for segment in topology.segments])
        # A neighbour sends here, unmasqueraded, what this host may have no route for after all.
        wall.sets["masquerade_from"].update(topology.own.cidrs if settings.cni else ())
    for name, members in wall.sets.items():
        meshed = name in ("masquerade_from", "no_masquerade_to")
        split = settled.split if name == "no_masquerade_to" else {}
        for member in map(canonical_network, members):
            route = ""
            if meshed and member not in near:
                if f"route/0/{member}" in items:
                    route = member
                elif not (connected and intersects(member, connected)):
                    continue
            for network in split.get(member, (member,)):
                items[f"entry/{name}/{network}"] = SetEntry(name, network, route)


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


def _api_server(api: ApiServer, nodes: Iterable[Node]) -> ApiServer:
    """Behind a service's address, or a load balancer's, the API servers are nodes of the control plane."""
    control_plane = {ip_of(node.internal_ip) for node in nodes if node.control_plane and node.internal_ip}
    return ApiServer(tuple(sorted(control_plane.union(api.addresses))), api.reachable)


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


def _view(topology: Topology, cloned: Set[str]) -> dict[str, TopologyItem]:
    """For people. ``cloned``: as in Settled."""
    view: dict[str, TopologyItem] = {
        "head": TopologyHead(topology.hostname, topology.location, topology.leader, topology.subnet)
    }
    view.update((f"segment/{segment.location}", segment) for segment in topology.segments)
    view.update((f"peer/{peer.name}", peer) for peer in peer_views(topology))
    if cloned:
        for key, item in view.items():
            name = key.replace("/", " ", 1) if isinstance(item, PeerView) else key.partition("/")[2]
            if name in cloned and not isinstance(item, TopologyHead):
                view[key] = msgspec.structs.replace(item, key_lost=True)
    return view
