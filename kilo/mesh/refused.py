"""Networks that no host of the mesh routes, whatever claims them. Pure; for the planner and kg plan.

They are taken out before anything is planned, so that they are in no route, no allowed IP and no firewall
set, and cost no other member a network that overlaps them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from kilo.model.net import canonical_network, single
from kilo.model.node import Node, Peer
from kilo.model.routable import unroutable
from kilo.model.topology import Segment

_LEFT = "it is in no route, no allowed IP and no firewall set, and its traffic goes where it went before"


class Accepted(NamedTuple):
    """Nodes and Peers with the networks that may have a route; ``conflicts`` as in planner.Planned."""

    nodes: list[Node]
    peers: list[Peer]
    conflicts: dict[str, str]


def refuse_unroutable(nodes: Iterable[Node], peers: Iterable[Peer]) -> Accepted:
    """Take out allowed IPs of Peers, and allowed location IPs of nodes, that may have no route."""
    conflicts: dict[str, str] = {}
    sound_nodes = []
    for node in nodes:
        if node.allowed_location_ips:
            field = "the annotation kilo.squat.ai/allowed-location-ips"
            kept = _kept(node.allowed_location_ips, f"node {node.name}", field, conflicts)
            if kept != node.allowed_location_ips:
                node = msgspec.structs.replace(node, allowed_location_ips=kept)
        sound_nodes.append(node)
    sound_peers = []
    for peer in peers:
        kept = _kept(peer.allowed_ips, f"peer {peer.name}", "spec.allowedIPs", conflicts)
        if kept != peer.allowed_ips:
            peer = msgspec.structs.replace(peer, allowed_ips=kept)
        sound_peers.append(peer)
    return Accepted(sound_nodes, sound_peers, conflicts)


def refuse_addresses(segments: Iterable[Segment]) -> dict[str, str]:
    """Pod CIDRs, internal IPs and WireGuard addresses that may have no route, each with what is wrong."""
    found = {}
    for segment in segments:
        refused = [network for network in segment.allowed_ips if unroutable(network)]
        claimants = _claimants(segment) if refused else {}
        for network in refused:
            what = f"{claimants.get(network, segment.location)} has {network}: {unroutable(network)}"
            found[network] = f"{what}; no other host reaches it"
    return found


def _claimants(segment: Segment) -> dict[str, str]:
    """The nodes by pod CIDR and internal IP; what else a segment has is its own, such as its WireGuard IP."""
    names = [f"node {name}" for name in segment.hostnames]
    private = dict(zip(map(single, segment.private_ips), names, strict=False))
    return private | dict(zip(segment.cidrs, names, strict=True))


def _kept(networks: tuple[str, ...], name: str, field: str, conflicts: dict[str, str]) -> tuple[str, ...]:
    if not any(map(unroutable, networks)):
        return networks
    for network in networks:
        if reason := unroutable(network):
            advice = f"write in {field} the networks that are reached through it, each by itself"
            key = f"refused/{name}/{canonical_network(network)}"
            conflicts[key] = f"{name} claims {network}: {reason}; {_LEFT}; {advice}"
    return tuple([network for network in networks if not unroutable(network)])
