"""A topology and all that follows from it as plain data: what ``kg plan -o json`` prints. Pure.

The form is that of ``expected`` in the conformance cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kilo import graph
from kilo.mesh.firewall import firewall
from kilo.mesh.routes import peer_routes, routes
from kilo.mesh.topology import Topology
from kilo.mesh.wireguard import as_peer, conf, peer_conf
from kilo.model.node import UDPAddress
from kilo.model.plan import Route, Rule
from kilo.model.settings import Settings
from kilo.model.topology import PeerView, Segment

PRIVATE, TUNNEL = "eth0", "tunl0"


def peer_views(topology: Topology) -> tuple[PeerView, ...]:
    """The peers of a topology without their secrets."""
    return tuple([PeerView(p.name, p.public_key, p.allowed_ips, p.endpoint) for p in topology.peers])


def describe(
    topology: Topology,
    settings: Settings,
    interface: str = "kilo0",
    private_key: str = "",
    connect: Iterable[str] = (),
) -> dict[str, Any]:
    """The ``topology`` of a conformance case's ``expected``.

    ``interface``: name of the WireGuard interface. ``private_key``: base64, printed in ``conf``.
    ``connect``: further destinations (Network) of ``peer_routes``.
    """
    devices = {"wireguard": interface, "private": PRIVATE, "tunnel": TUNNEL, "": ""}
    found, rules = routes(topology, settings)
    names = [peer.name for peer in topology.peers]
    extra = tuple(connect)
    wall = firewall(topology, settings)
    views = peer_views(topology)
    return {
        "location": topology.location,
        "leader": topology.leader,
        "wireguard_cidr": topology.wireguard_cidr,
        "segments": [_segment(segment) for segment in topology.segments],
        "conf": conf(topology, settings.port, private_key),
        "as_peer": as_peer(topology),
        "peer_confs": {name: peer_conf(topology, name) for name in names},
        "routes": [_route(route, devices) for route in found],
        "rules": [_rule(rule, devices) for rule in rules],
        "peer_routes": {
            name: [_route(route, devices) for route in peer_routes(topology, name, extra)] for name in names
        },
        "firewall": {
            **{name: sorted(members) for name, members in wall.sets.items()},
            "ipip_guard": wall.ipip_guard,
        },
        "graph": {
            "edges": [
                {"from": edge.start, "to": edge.end, "dashed": edge.dashed}
                for edge in graph.edges(topology.segments, views)
            ],
            "labels": graph.labels(topology.segments, views),
        },
        "discovered_endpoints": {key: _udp(address) for key, address in topology.discovered.items()},
    }


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "location": segment.location,
        "leader": segment.hostnames[segment.leader],
        "hostnames": list(segment.hostnames),
        "allowed_ips": list(segment.allowed_ips),
        "allowed_location_ips": list(segment.allowed_location_ips),
        "cidrs": list(segment.cidrs),
        "private_ips": list(segment.private_ips),
        "endpoint": str(segment.endpoint) if segment.endpoint else "",
        "public_key": segment.key,
        "persistent_keepalive": segment.persistent_keepalive,
        "wireguard_ip": segment.wireguard_ip,
    }


def _route(route: Route, devices: Mapping[str, str]) -> dict[str, Any]:
    return {
        "dst": route.dst,
        "via": route.via,
        "src": route.src,
        "dev": devices[route.device],
        "table": route.table,
        "onlink": route.onlink,
    }


def _rule(rule: Rule, devices: Mapping[str, str]) -> dict[str, Any]:
    return {"src": rule.src, "dst": rule.dst, "iif": devices[rule.iif], "table": rule.table}


def _udp(address: UDPAddress | None) -> str:
    if address is None:
        return "<nil>"
    host = f"{address.ip}%{address.zone}" if address.zone else address.ip
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
