"""WireGuard configurations in the format of wg(8), byte for byte as squat/kilo writes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from kilo.mesh.topology import Topology
from kilo.model.keys import PresharedKey
from kilo.model.node import Endpoint, Peer
from kilo.model.topology import Segment

UINT64 = 1 << 64


def conf(topology: Topology, port: int, private_key: str = "") -> str:
    """The local node's configuration. Without ``private_key`` (base64) the line for it is left out."""
    keepalive = topology.local.persistent_keepalive
    sections = ["[Interface]\n"]
    if private_key:
        sections[0] += f"PrivateKey = {private_key}\n"
    sections[0] += f"ListenPort = {port}\n"
    others = [segment for segment in topology.segments if segment.location != topology.location]
    sections += [_segment(topology, segment, keepalive) for segment in others]
    sections += [_peer(topology, peer, keepalive, peer.preshared_key) for peer in topology.peers]
    return "\n".join(sections)


def as_peer(topology: Topology) -> str:
    """The local segment as a peer of somebody else's interface."""
    own = topology.own
    return _section(own.key, own.allowed_ips, own.endpoint, 0)


def peer_conf(topology: Topology, name: str) -> str:
    """The configuration of the Peer ``name``, without its [Interface]."""
    peer = next(p for p in topology.peers if p.name == name)
    keepalive, secret = peer.persistent_keepalive, peer.preshared_key
    sections = [_segment(topology, segment, keepalive, secret) for segment in topology.segments]
    sections += [_peer(topology, p, keepalive) for p in topology.peers if p.name != name]
    return "\n".join(sections)


def _segment(topology: Topology, segment: Segment, keepalive: int, secret: PresharedKey | None = None) -> str:
    allowed = segment.allowed_ips + segment.allowed_location_ips
    return _section(segment.key, allowed, topology.endpoint_of(segment), keepalive, secret)


def _peer(topology: Topology, peer: Peer, keepalive: int, secret: PresharedKey | None = None) -> str:
    return _section(peer.public_key, peer.allowed_ips, topology.endpoint_of(peer), keepalive, secret)


def _section(
    key: str,
    allowed_ips: Iterable[str],
    endpoint: Endpoint | None,
    keepalive: int,
    secret: PresharedKey | None = None,
) -> str:
    lines = ["[Peer]"]
    if allowed := ", ".join(allowed_ips):
        lines.append(f"AllowedIPs = {allowed}")
    if endpoint is not None:
        lines.append(f"Endpoint = {endpoint}")
    lines.append(f"PersistentKeepalive = {keepalive % UINT64}")
    if secret is not None:
        lines.append(f"PresharedKey = {secret.value}")
    lines.append(f"PublicKey = {key}\n")
    return "\n".join(lines)
