"""The topology as health shows it: segments and peers, small enough to send whole."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kilo.model.node import Endpoint


class Segment(msgspec.Struct, frozen=True, gc=False, tag="segment", omit_defaults=True):
    """Nodes that share one WireGuard address. The tuples run in parallel, one entry a node.

    ``private_ips`` is empty where the segment is a single node without one.
    ``leader`` is an index into them. ``location`` carries its prefix, ``location:`` or ``node:``.
    ``key_lost``: another node or Peer keeps this public key here.
    """

    location: str
    hostnames: tuple[str, ...]
    cidrs: tuple[str, ...]
    private_ips: tuple[str, ...]
    leader: int
    key: str
    wireguard_ip: str
    endpoint: Endpoint | None = None
    allowed_ips: tuple[str, ...] = ()
    allowed_location_ips: tuple[str, ...] = ()
    cni_compatibility_ips: tuple[str, ...] = ()
    persistent_keepalive: int = 0
    key_lost: bool = False


class PeerView(msgspec.Struct, frozen=True, gc=False, tag="peer", omit_defaults=True):
    """A Peer in the topology, without its secret. ``key_lost`` as of Segment."""

    name: str
    public_key: str
    allowed_ips: tuple[str, ...] = ()
    endpoint: Endpoint | None = None
    key_lost: bool = False


class TopologyHead(msgspec.Struct, frozen=True, gc=False, tag="head"):
    """Where this host stands: its segment, whether it leads, the network of the WireGuard addresses."""

    hostname: str
    location: str
    leader: bool
    subnet: str


TopologyItem = Segment | PeerView | TopologyHead


def keepers(items: Iterable[TopologyItem]) -> dict[str, Segment | PeerView]:
    """The segment or Peer that has each public key here: of those that claim the same one, the one that the
    planner gives it to."""
    found: dict[str, Segment | PeerView] = {}
    for item in items:
        if isinstance(item, Segment) and not item.key_lost:
            found[item.key] = item
        elif isinstance(item, PeerView) and not item.key_lost:
            found[item.public_key] = item
    return found


def name_of(item: Segment | PeerView) -> str:
    """The name of a Peer, or of the node that leads a segment."""
    return item.name if isinstance(item, PeerView) else item.hostnames[item.leader]
