"""Asks a peer for a handshake: a datagram into the tunnel is all it takes.

It goes to the discard port, and nobody need answer it: WireGuard makes the handshake before it
sends, and that is what counts.
"""

from __future__ import annotations

import contextlib
import socket

from kilo.model.net import bounds, contains, text_of
from kilo.model.plan import PlannedPeer

DISCARD = 9


def target(peer: PlannedPeer, subnet: str) -> str:
    """An address that is reached through ``peer``, "" if none: its WireGuard address (one of
    ``subnet``) if it has one, else the first host of its first network."""
    hosts = []
    for network in peer.allowed_ips:
        version, first, last = bounds(network)
        ip = text_of(version, first if first == last else first + 1)
        if first == last and contains(subnet, ip):
            return ip
        hosts.append(ip)
    return hosts[0] if hosts else ""


def ask(interface: str, ip: str) -> None:
    """Send one datagram to ``ip`` through ``interface``. Whatever goes wrong shows as no handshake."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sender.setblocking(False)
        sender.sendto(b"", (ip, DISCARD))
