"""Addresses of other nodes that a link of this host has, too. Pure.

The kernel refuses a route whose gateway is an address of the host itself, or a broadcast address of one of
its networks. So such a route is left out of the plan, and the node and the link are named.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

import msgspec

from kilo.mesh.topology import Topology
from kilo.model.host import HostFacts
from kilo.model.net import address_text, bounds, ip_of, parse_interface, single, text_of
from kilo.model.plan import PlanItem, Route, Rule, SetEntry
from kilo.model.topology import Segment


class Duplicates(NamedTuple):
    """``gateways``: addresses (IP) that no route can go by. ``conflicts``: by a stable key, for a person."""

    gateways: frozenset[str]
    conflicts: dict[str, str]

    def withhold(self, items: dict[str, PlanItem]) -> None:
        """Take out what needs a gateway that the kernel refuses.

        WireGuard finds the peer by destination, so there the route stays, without its gateway. Traffic to
        what has no route goes where it went before, so it is masqueraded as before, too.
        """
        if not self.gateways:
            return
        hosts = set(map(single, self.gateways))
        lost = set[str]()
        for key, item in list(items.items()):
            if isinstance(item, Route) and item.via in self.gateways:
                if item.device == "wireguard":
                    items[key] = msgspec.structs.replace(item, via="", onlink=False)
                else:
                    del items[key]
                    lost.add(item.dst)
            elif isinstance(item, Rule) and item.dst in hosts:
                del items[key]
        for key, item in list(items.items()):
            if isinstance(item, SetEntry) and (item.route in lost or _is_known(item, lost)):
                del items[key]


def _is_known(entry: SetEntry, networks: Container[str]) -> bool:
    """Whether an entry keeps traffic to one of ``networks`` from being masqueraded."""
    return entry.set == "no_masquerade_to" and entry.network in networks


def duplicates(topology: Topology, host: HostFacts) -> Duplicates:
    """What other nodes have in common with the links of ``host``, or what is a broadcast address here.

    Links of the agent's own do not count: they get other addresses with the plan. Nor does the internal IP
    that another node claims as well: who keeps it is decided in kilo.mesh.claims.
    """
    links = dict(_refused(host))
    if not links:
        return Duplicates(frozenset(), {})
    found = _Found(topology, links)
    for segment in topology.segments:
        if segment.wireguard_ip in links:
            # What --subnet has in common with the networks of this host is reported by claims.
            found.gateways.add(segment.wireguard_ip)
        if segment.location == topology.location:
            found.look_at_neighbours(segment)
        else:
            found.look_at(segment)
    return Duplicates(frozenset(found.gateways), found.conflicts)


class _Found:
    """``links``: by IP, what it is on this host."""

    def __init__(self, topology: Topology, links: Mapping[str, str]) -> None:
        self.gateways: set[str] = set()
        self.conflicts: dict[str, str] = {}
        self._topology = topology
        self._links = links
        local = topology.local
        self._here = f"this node, node {local.name}"
        self._internal_ip = address_text(local.internal_ip) if local.internal_ip else ""

    def look_at_neighbours(self, own: Segment) -> None:
        """The other nodes of the own segment: routes go by their addresses."""
        for i, ip in self._shared(own):
            self.gateways.add(ip)
            lost = f"the pods of node {own.hostnames[i]}"
            if i == own.leader:
                lost += ", the leader of this location, and none to other locations"
            self._note(own, i, f": this node has no route to {lost}")
        addresses = {address_text(address) for address in own.cni_compatibility_ips if address}
        self.gateways |= (addresses & self._links.keys()) - set(own.private_ips)

    def look_at(self, other: Segment) -> None:
        """The nodes of another segment, and the endpoint of its leader."""
        for i, _ in self._shared(other):
            self._note(other, i, ": packets from here to that address stay on this node")
        endpoint = self._topology.endpoint_of(other)
        if endpoint is not None and endpoint.ip in self._links:
            self._tell(endpoint.ip, f"node {other.hostnames[other.leader]} has the endpoint {endpoint}", "")

    def _shared(self, segment: Segment) -> Iterator[tuple[int, str]]:
        for i, ip in enumerate(segment.private_ips):
            if ip in self._links and ip != self._internal_ip:
                yield i, ip

    def _note(self, segment: Segment, i: int, outcome: str) -> None:
        ip = segment.private_ips[i]
        self._tell(ip, f"node {segment.hostnames[i]} has the internal IP {ip}", outcome)

    def _tell(self, ip: str, what: str, outcome: str) -> None:
        text = (
            f"{what}, which is {self._links[ip]} of {self._here}{outcome}; give one of them another address"
        )
        self.conflicts.setdefault(f"address/{ip}", text)


def _refused(host: HostFacts) -> Iterator[tuple[str, str]]:
    """Each address (IP) that is no gateway on this host, and what it is."""
    for link in host.links:
        if link.name in host.ignored_links:
            continue
        for interface in link.addresses:
            version, _, last = bounds(interface)
            if version == 4 and parse_interface(interface)[1] < 31:
                yield text_of(version, last), f"the broadcast address of {interface} on {link.name}"
    for link in host.links:
        if link.name not in host.ignored_links:
            for interface in link.addresses:
                yield ip_of(interface), f"also on {link.name}"
