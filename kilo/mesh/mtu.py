"""How large the packets of pods may be. Pure.

One MTU serves the WireGuard interface and the pods, since what pods send goes through WireGuard or
not depending on where it is going.
"""

from __future__ import annotations

from kilo.mesh.addresses import underlay_mtu
from kilo.mesh.topology import Topology
from kilo.model.host import HostFacts
from kilo.model.net import ip_of
from kilo.model.settings import Settings

WIREGUARD_OVERHEAD = 80
"""Bytes that WireGuard adds to a packet over IPv6."""
IPIP_OVERHEAD = 20
IPV6_MIN = 1280
IPV4_MIN = 576
DEFAULT = 1420


def mtu_of(topology: Topology, host: HostFacts, private_ip: str, settings: Settings) -> int:
    """Bytes: as the flag says, or for ``auto`` what the underlay leaves after each encapsulation.

    The underlay is the default route's link, and with --prioritise-private-addresses the link of
    ``private_ip`` (Interface form or "") too. Packets of pods that go to the leader, or come from it,
    in IPIP go over the latter; they are not in IPIP and WireGuard at once, but go through both.
    """
    if settings.mtu:
        return settings.mtu
    default = underlay_mtu(host)
    private = _mtu_at(host, private_ip)
    rooms = [default - WIREGUARD_OVERHEAD if default else 0]
    if private and settings.prioritise_private_addresses:
        rooms.append(private - WIREGUARD_OVERHEAD)
    if private and settings.encapsulate != "never" and settings.compatibility != "flannel":
        rooms.append(private - IPIP_OVERHEAD)
    room = min(filter(None, rooms), default=0)
    if not default:
        room = min(room, DEFAULT) if room else DEFAULT
    if room >= IPV6_MIN:
        return room
    return IPV6_MIN if _has_ipv6(topology, settings) else max(room, IPV4_MIN)


def _mtu_at(host: HostFacts, interface: str) -> int:
    """That of the link that has the address of ``interface``, 0 if none has."""
    ip = ip_of(interface) if interface else ""
    return next((link.mtu for link in host.links if any(ip_of(a) == ip for a in link.addresses)), 0)


def _has_ipv6(topology: Topology, settings: Settings) -> bool:
    """Whether there is any IPv6 in the mesh. A link with a smaller MTU than IPV6_MIN has none."""
    claims = [settings.service_cidrs, *(peer.allowed_ips for peer in topology.peers)]
    for segment in topology.segments:
        claims += (segment.allowed_ips, segment.allowed_location_ips)
    return any(":" in network for networks in claims for network in networks)
