"""Clusters with a name, for the planner's tests, and short ways to write nodes, peers and hosts."""

from __future__ import annotations

import base64
from typing import Any

from kilo.mesh.planner import Inputs, Planned, plan
from kilo.mesh.topology import Topology, build
from kilo.model.host import HostFacts, Link, WireGuardPeerState
from kilo.model.net import ip_of, is_private
from kilo.model.node import Endpoint, Node, Peer
from kilo.model.settings import Settings


def key(name: str) -> str:
    """A public key that differs for every name."""
    return base64.b64encode(name.encode().ljust(32, b".")[:32]).decode()


def at(ip: str, port: int = 51820) -> Endpoint:
    return Endpoint(ip, port, ip)


def node(name: str, location: str = "", **fields: Any) -> Node:
    """A node that takes part. Names end in a number, of which its pod CIDR and addresses are made."""
    number = int("".join(filter(str.isdigit, name)) or 0)
    defaults: dict[str, Any] = {
        "key": key(name),
        "endpoint": at(f"203.0.113.{number}"),
        "internal_ip": f"10.0.0.{number}/24",
        "subnet": f"10.2.{number}.0/24",
    }
    return Node(name=name, location=location, **(defaults | fields))


def peer(name: str, *allowed_ips: str, **fields: Any) -> Peer:
    return Peer(name=name, public_key=key(name), allowed_ips=allowed_ips, **fields)


def cluster(*members: Node | Peer) -> tuple[list[Node], list[Peer]]:
    return [m for m in members if isinstance(m, Node)], [m for m in members if isinstance(m, Peer)]


LONELY = cluster(node("n1"))
TWO_IN_ONE_LOCATION = cluster(node("n1", "x"), node("n2", "x"))
TWO_LOCATIONS = cluster(node("n1", "x"), node("n2", "x"), node("n3", "y"), node("n4", "y"))
WITH_PEERS = cluster(
    *TWO_LOCATIONS[0],
    peer("laptop", "10.5.0.1/32", persistent_keepalive=25),
    peer("office", "10.6.0.0/24", "10.5.0.2/32", endpoint=at("198.51.100.9")),
)
ONE_WITHOUT_PRIVATE_ADDRESS = cluster(*TWO_LOCATIONS[0], node("n5", "x", internal_ip=""))
BEHIND_NAT = cluster(
    *TWO_LOCATIONS[0],
    node("n6", "z", endpoint=at("10.9.0.6"), internal_ip="10.9.0.6/24", persistent_keepalive=10),
)
WITH_A_PRINTER = cluster(
    node("n1", "x", allowed_location_ips=("192.168.7.9/32",)), node("n2", "x"), node("n3", "y")
)
STATES = {
    "lonely": LONELY,
    "two in one location": TWO_IN_ONE_LOCATION,
    "two locations": TWO_LOCATIONS,
    "with peers": WITH_PEERS,
    "one without private address": ONE_WITHOUT_PRIVATE_ADDRESS,
    "behind NAT": BEHIND_NAT,
    "with a printer": WITH_A_PRINTER,
}


def topology(state: tuple[list[Node], list[Peer]], hostname: str = "n1", **flags: Any) -> Topology:
    return build(*state, Settings(hostname, **flags))


def host_of(of: Node) -> HostFacts:
    """The facts of the host on which ``of`` runs: its addresses are on eth0."""
    addresses = [of.internal_ip] if of.internal_ip else []
    if of.endpoint and of.endpoint.ip and not is_private(of.endpoint.ip):
        addresses.append(f"{of.endpoint.ip}/24")
    links = (Link("eth0", 2, 1500, up=True, addresses=tuple(addresses)),)
    return HostFacts(of.key, links=links, default_link="eth0")


def inputs(
    state: tuple[list[Node], list[Peer]],
    hostname: str = "n1",
    host: HostFacts | None = None,
    wireguard: dict[str, WireGuardPeerState] | None = None,
    **flags: Any,
) -> Inputs:
    nodes = {n.name: n for n in state[0]}
    local = nodes[hostname]
    peers = {p.name: p for p in state[1]}
    return Inputs(local, nodes, peers, host or host_of(local), wireguard, Settings(hostname, **flags))


def planned(state: tuple[list[Node], list[Peer]], hostname: str = "n1", **others: Any) -> Planned:
    return plan(inputs(state, hostname, **others))


def addresses_of(of: Node) -> set[str]:
    """The addresses that a host has before it takes part in the mesh."""
    return {ip_of(a) for link in host_of(of).links for a in link.addresses}
