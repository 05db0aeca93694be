"""Endpoints that no packet reaches, and the messages that report them. Pure; for the planner and kg plan."""

from __future__ import annotations

from collections.abc import Iterable

from kilo.mesh.claims import label_of, object_name
from kilo.mesh.endpoints import Overlay, unusable_endpoint
from kilo.mesh.near import near
from kilo.mesh.topology import Topology
from kilo.model.host import HostFacts
from kilo.model.net import address_text, single
from kilo.model.node import Endpoint, Node, Peer
from kilo.model.topology import Segment


def unused_endpoints(topology: Topology, host: HostFacts | None = None) -> dict[str, str]:
    """Endpoints that no packet reaches, with what is wrong, by the label_of their segment or Peer.

    A peer without an endpoint is reached once it has called. The local node's own is under "own".
    """
    judge = _Judge(topology, host)
    found = {}
    for segment in topology.segments:
        if segment.location != topology.location:
            endpoint = topology.endpoint_of(segment)
            # An internal IP is assigned to its node, whatever network of the overlay holds it.
            if reason := judge.reason(endpoint, segment.private_ips):
                found[segment.location] = _told(segment, endpoint, reason)
    for peer in topology.peers:
        endpoint = topology.endpoint_of(peer)
        # One in its own allowed IPs is used: netctl withholds the network that would lead its packets away.
        if reason := judge.reason(endpoint):
            found[label_of(peer)] = _told(peer, endpoint, reason)
    local = topology.local
    internal = (address_text(local.internal_ip),) if local.internal_ip else ()
    if reason := judge.reason(local.endpoint, internal):
        found["own"] = _told_of_local(local, reason)
    return found


class _Judge:
    """Which endpoints packets of this host reach, without ``host`` as far as the mesh alone says it."""

    def __init__(self, topology: Topology, host: HostFacts | None) -> None:
        pods = [cidr for segment in topology.segments for cidr in segment.cidrs]
        self._overlay = Overlay(topology.subnet, pods)
        self._near = near(host, topology.local.internal_ip, ())

    def reason(self, endpoint: Endpoint | None, assigned: Iterable[str] = ()) -> str:
        """Why no packet reaches ``endpoint``, "" if one may. ``assigned``: addresses (IP) of its node."""
        if endpoint is None or not endpoint.ip:
            return ""
        if reason := unusable_endpoint(endpoint.ip):
            return reason
        if endpoint.ip in assigned or not (reason := self._overlay.holds(endpoint.ip)):
            return ""
        connected = self._near.around(single(endpoint.ip))
        return self._overlay.holds(endpoint.ip, connected=connected) if connected else reason


def _told(other: Segment | Peer, endpoint: Endpoint | None, reason: str) -> str:
    fields = ("annotation kilo.squat.ai/force-endpoint", "spec.endpoint")
    found = "" if endpoint is other.endpoint else ", at which another node found it,"
    return (
        f"the endpoint {endpoint} of {object_name(other)}{found} is not used, since {reason}: it is reached"
        f" once it has sent a packet here; {fields[isinstance(other, Peer)]} can name one that is reachable"
    )


def _told_of_local(local: Node, reason: str) -> str:
    whence = (
        "the annotation kilo.squat.ai/force-endpoint says" if local.forced_endpoint else "it was found as"
    )
    return (
        f"the endpoint {local.endpoint} of this node, node {local.name}, is not used by the others, since"
        f" {reason} ({whence} {local.endpoint}): they reach this node once it has sent them a packet;"
        " kilo.squat.ai/force-endpoint can name an address at which other locations reach this node"
    )
