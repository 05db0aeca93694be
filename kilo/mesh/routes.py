"""Routes and policy rules of a topology, as squat/kilo plans them (pkg/mesh/routes.go). Pure.

Lists are in that agent's order and may name a destination twice; of those the first counts.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from kilo.mesh.topology import Topology
from kilo.model.net import address_text, contains, single
from kilo.model.plan import Route, Rule
from kilo.model.settings import Settings
from kilo.model.topology import Segment

KILO_TABLE = 1107
"""Where routes to private addresses go that only count for traffic from pods and from the mesh."""


class Planned(NamedTuple):
    """``within``: those of the ``routes`` that lead to nodes of the own segment."""

    routes: list[Route]
    rules: list[Rule]
    within: list[Route]


def planned_routes(
    topology: Topology, settings: Settings, has_source: bool = True, behind: Container[str] = ()
) -> Planned:
    """The local node's routes and rules. ``dst`` keeps the host bits that its source has.

    ``has_source``: whether the local node's internal IP is assigned to this host. The kernel refuses a
    route with a source address that is not. ``behind``: neighbours whose pod CIDR another one has.
    """
    planner = _Planner(topology, settings, has_source, behind)
    return Planned(*(planner.leader() if topology.leader else planner.follower()), planner.local)


def routes(topology: Topology, settings: Settings) -> tuple[list[Route], list[Rule]]:
    """The local node's routes and rules, as planned_routes has them where the host has its internal IP."""
    return planned_routes(topology, settings)[:2]


def peer_routes(topology: Topology, name: str, extra: Iterable[str] = ()) -> list[Route]:
    """The routes of the Peer ``name`` to the whole mesh, and through its first segment to ``extra``."""
    found = []
    for segment in topology.segments:
        gateway = segment.wireguard_ip
        private = [single(ip) for ip in segment.private_ips]
        networks = (*segment.cidrs, *private, *segment.allowed_location_ips)
        found += [Route(dst, "wireguard", gateway, onlink=True) for dst in networks]
        found.append(Route(single(gateway), "wireguard"))
    for peer in topology.peers:
        if peer.name != name:
            found += [Route(dst, "wireguard") for dst in peer.allowed_ips]
    first = topology.segments[0].wireguard_ip
    return found + [Route(dst, "wireguard", first, onlink=True) for dst in extra]


class _Planner:
    """What the ways of planning share: the topology, the flags, and the local private address."""

    def __init__(
        self, topology: Topology, settings: Settings, has_source: bool, behind: Container[str]
    ) -> None:
        self._topology = topology
        self._settings = settings
        self._behind = behind
        self._private = topology.local.internal_ip
        self._address = address_text(self._private) if self._private else ""
        self._src = self._address if has_source else ""
        self.local: list[Route] = []

    def leader(self) -> tuple[list[Route], list[Rule]]:
        """A leader reaches its own segment directly and everybody else through WireGuard."""
        found: list[Route] = []
        rules: list[Rule] = []
        for segment in self._topology.segments:
            if segment.location != self._topology.location:
                self._through_wireguard(segment, found)
            elif self._private and self._settings.local:
                self._within(segment, found, rules)
            elif self._private and self._settings.encapsulate != "never":
                self._returning(segment, found, rules)
        for peer in self._topology.peers:
            found += [Route(dst, "wireguard", src=self._src) for dst in peer.allowed_ips]
        return found, rules

    def follower(self) -> tuple[list[Route], list[Rule]]:
        """Who does not lead reaches everybody outside its segment through the leader."""
        found: list[Route] = []
        rules: list[Rule] = []
        own = self._topology.own
        gateway = self._gateway(own, own.leader)
        for segment in self._topology.segments:
            found.append(self._direct(single(segment.wireguard_ip), gateway))
            if segment.location == self._topology.location:
                if self._settings.local:
                    self._within(segment, found, rules)
                continue
            private = [single(ip) for ip in segment.private_ips]
            networks = (*segment.cidrs, *private, *segment.allowed_location_ips)
            found += [self._direct(dst, gateway) for dst in networks]
        for peer in self._topology.peers:
            found += [self._direct(dst, gateway) for dst in peer.allowed_ips]
        return found, rules

    def _through_wireguard(self, segment: Segment, found: list[Route]) -> None:
        """A private address that also is the endpoint stays outside: a tunnel cannot carry itself."""
        gateway, src = segment.wireguard_ip, self._src
        endpoint = self._topology.endpoint_of(segment)
        outside = endpoint.ip if endpoint else ""
        for i, cidr in enumerate(segment.cidrs):
            found.append(Route(cidr, "wireguard", gateway, src, onlink=True))
            if segment.private_ips and segment.private_ips[i] != outside:
                found.append(Route(single(segment.private_ips[i]), "wireguard", gateway, src, onlink=True))
        extra = segment.allowed_location_ips
        found += [Route(dst, "wireguard", gateway, src, onlink=True) for dst in extra]

    def _within(self, own: Segment, found: list[Route], rules: list[Rule]) -> None:
        """To the other nodes of the own segment: their pods, and from pods their private addresses."""
        local = self.local
        for i, ip in self._others(own):
            gateway = self._gateway(own, i)
            if own.hostnames[i] not in self._behind:
                local.append(self._direct(own.cidrs[i], gateway))
            if not self._encapsulated(ip):
                continue
            dst = single(ip)
            local.append(Route(dst, "tunnel", gateway, self._src, KILO_TABLE, onlink=True))
            rules.append(Rule(KILO_TABLE, src=self._topology.local.subnet, dst=dst))
            if self._topology.leader:
                rules.append(Rule(KILO_TABLE, dst=dst, iif="wireguard"))
        found += local

    def _returning(self, own: Segment, found: list[Route], rules: list[Rule]) -> None:
        """Where somebody else manages local routes, what came encapsulated goes back encapsulated."""
        for i, ip in self._others(own):
            gateway = self._gateway(own, i)
            if gateway == ip:
                continue
            dst = single(ip)
            found.append(Route(dst, "tunnel", gateway, table=KILO_TABLE, onlink=True))
            rules.append(Rule(KILO_TABLE, dst=dst, iif="wireguard"))

    def _others(self, own: Segment) -> Iterator[tuple[int, str]]:
        """Index and private address of the own segment's nodes that are not this one."""
        return ((i, ip) for i, ip in enumerate(own.private_ips) if ip != self._address)

    def _gateway(self, segment: Segment, i: int) -> str:
        """Where the encapsulation in use wants packets for node ``i`` of ``segment`` sent."""
        match self._settings.compatibility:
            case "":
                return segment.private_ips[i]
            case "cilium" if segment.cni_compatibility_ips[i]:
                return address_text(segment.cni_compatibility_ips[i])
            case _:
                return address_text(segment.cidrs[i])

    def _direct(self, dst: str, gateway: str) -> Route:
        """By the private interface, or encapsulated where the flags say so of ``gateway``."""
        if self._encapsulated(gateway):
            return Route(dst, "tunnel", gateway, self._src, onlink=True)
        return Route(dst, "private", gateway, onlink=True)

    def _encapsulated(self, ip: str) -> bool:
        if self._settings.encapsulate == "crosssubnet":
            return not contains(self._private, ip)
        return self._settings.encapsulate == "always"
