"""Sends packets through the plans of all nodes of a cluster, to see where they end.

A plan is judged here by what the kernel would do with it: rules, then the longest prefix among the
routes of their table; WireGuard by allowed IPs, outbound by destination and inbound by source.
"""

from __future__ import annotations

from typing import Any

from kilo.model.net import bounds, contains, parse_interface
from kilo.model.node import Node, Peer
from kilo.model.plan import Interface, PlanItem, PlannedPeer, Route, Rule, SetEntry
from tests.unit.mesh.states import addresses_of, planned

MAX_HOPS = 6


class Lost(Exception):
    """Where a packet ended that did not arrive, and why."""


class World:
    """Every node of a cluster, each with its own plan, made with the same flags."""

    def __init__(self, state: tuple[list[Node], list[Peer]], **flags: Any) -> None:
        self.nodes = {n.name: n for n in state[0]}
        self.plans = {n: planned(state, n, **flags) for n in self.nodes}
        self.keys = {n.key: n.name for n in state[0]}
        self.peers = {p.public_key: p.name for p in state[1]}

    def send(self, start: str, source: str, destination: str, from_pod: bool = True) -> list[str]:
        """The nodes and Peers that a packet passes, the last being where it arrives. Raises Lost."""
        path, came_by = [start], "pods" if from_pod else "self"
        while len(path) < MAX_HOPS:
            here = path[-1]
            if here not in self.nodes or self._is_mine(here, destination):
                return path
            route = self._route(here, source, destination, came_by)
            came_by = route.device
            if route.device == "wireguard":
                path.append(self._through_wireguard(here, source, destination))
            else:
                path.append(self._neighbour(here, route.via))
        raise Lost(f"{source} to {destination} goes round: {path}")

    def is_masqueraded(self, name: str, source: str, destination: str) -> bool:
        """Whether node ``name`` replaces the source of a packet that it forwards."""
        if self._holds(name, "no_masquerade_to", destination):
            return False
        return self._holds(name, "masquerade_from", source) or self._holds(name, "masquerade_to", destination)

    def _holds(self, name: str, kind: str, ip: str) -> bool:
        return any(e.set == kind and contains(e.network, ip) for e in self.items(name, SetEntry))

    def items(self, name: str, kind: type[PlanItem]) -> list[Any]:
        return [item for item in self.plans[name].items.values() if isinstance(item, kind)]

    def _is_mine(self, name: str, ip: str) -> bool:
        interface = self.plans[name].items["interface"]
        assert isinstance(interface, Interface)
        own = addresses_of(self.nodes[name]) | {interface.address.partition("/")[0]}
        return ip in own or contains(self.nodes[name].subnet, ip)

    def _route(self, name: str, source: str, destination: str, came_by: str) -> Route:
        routes: list[Route] = self.items(name, Route)
        for rule in self.items(name, Rule):
            if _matches(rule, source, destination, came_by) and (
                found := _longest(routes, rule.table, destination)
            ):
                return found
        if found := _longest(routes, 0, destination):
            return found
        private = self.nodes[name].internal_ip
        if private and contains(private, destination):
            return Route(destination, "private", via=destination)
        raise Lost(f"{name} has no route to {destination}")

    def _through_wireguard(self, name: str, source: str, destination: str) -> str:
        """By allowed IPs at both ends; raises Lost if either end does not know the address."""
        key = _holder(self.items(name, PlannedPeer), destination)
        if key in self.peers:
            return self.peers[key]
        if key not in self.keys:
            raise Lost(f"{name}: no WireGuard peer holds {destination}")
        other = self.keys[key]
        if _holder(self.items(other, PlannedPeer), source) != self.nodes[name].key:
            raise Lost(f"{other} does not accept {source} from {name}")
        return other

    def _neighbour(self, name: str, gateway: str) -> str:
        location = self.nodes[name].location
        for other in self.nodes.values():
            if other.location == location and gateway == other.internal_ip.partition("/")[0]:
                return other.name
        raise Lost(f"{name}: nobody near has {gateway}")


def _matches(rule: Rule, source: str, destination: str, came_by: str) -> bool:
    if rule.iif and rule.iif != came_by:
        return False
    if rule.src and not contains(rule.src, source):
        return False
    return not rule.dst or contains(rule.dst, destination)


def _longest(routes: list[Route], table: int, destination: str) -> Route | None:
    fitting = [r for r in routes if r.table == table and contains(r.dst, destination)]
    return max(fitting, key=lambda r: parse_interface(r.dst)[1], default=None)


def _holder(peers: list[PlannedPeer], ip: str) -> str:
    """The key of the peer to which WireGuard gives an address."""
    found = [(bounds(n)[1], p.public_key) for p in peers for n in p.allowed_ips if contains(n, ip)]
    return max(found, default=(0, ""))[1]
