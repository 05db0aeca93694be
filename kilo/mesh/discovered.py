"""Discovered endpoints that lead nowhere: which are neither announced nor accepted from other nodes. Pure.

WireGuard learns an endpoint from the last packet of a peer, or has it from a person. An address inside the
mesh is reached through the very tunnel that would be sent to it, and one such as loopback is another host's
everywhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from kilo.mesh.endpoints import Overlay, unusable_endpoint
from kilo.mesh.owners import name_of
from kilo.mesh.topology import Topology, location_of
from kilo.model.net import address_text, parse_interface
from kilo.model.node import Endpoint, Node, Peer, UDPAddress
from kilo.model.routable import WIDEST
from kilo.model.settings import Settings

_MOST_NAMES = 4

Discovered = Mapping[str, UDPAddress | None]
"""By public key; None stands for an endpoint that was lost."""


class _Owner(NamedTuple):
    """A Peer, or a node with the ``internal_ips`` (IP) of its location. ``networks``: of its WireGuard peer
    (Network or Interface), but for pod CIDRs and internal IPs."""

    name: str
    internal_ips: Collection[str]
    networks: Iterable[str]


class DiscoveredEndpoints:
    """Judges endpoints of the nodes and Peers of one plan. ``conflicts``: by a stable key, for a person."""

    def __init__(self, nodes: Mapping[str, Node], peers: Iterable[Peer], settings: Settings) -> None:
        self._nodes = nodes
        self._peers = tuple(peers)
        self._settings = settings
        self._verdicts: dict[tuple[str, str], str] = {}
        self._refused: dict[tuple[str, str, str, str], list[str]] = {}
        """Name, endpoint, reason and outcome of each that is refused, and what found it."""

    def announced(self, found: Discovered) -> dict[str, UDPAddress | None]:
        """Those that WireGuard has found on this host and that other nodes can use."""
        kept = {}
        for key, address in found.items():
            if reason := self._reason(key, address):
                self._refuse(key, address, reason, "is not announced to other nodes", "this host")
            else:
                kept[key] = address
        return kept

    def accepted(self, topology: Topology) -> Topology:
        """``topology`` without unusable endpoints; another node may have found a usable one."""
        bad = {key: reason for key, at in topology.discovered.items() if (reason := self._reason(key, at))}
        if not bad:
            return topology
        usable = {key: address for key, address in topology.discovered.items() if key not in bad}
        for segment in topology.segments:
            for name in segment.hostnames:
                found = topology.members[name].discovered_endpoints
                for key in bad.keys() & found.keys():
                    if reason := self._reason(key, found[key]):
                        self._refuse(key, found[key], reason, "is not used", f"node {name}")
                    else:
                        usable.setdefault(key, found[key])
        return replace(topology, discovered=usable)

    @property
    def conflicts(self) -> dict[str, str]:
        texts: dict[str, list[str]] = {}
        for (name, where, reason, outcome), finders in self._refused.items():
            by = ", ".join(finders[:_MOST_NAMES])
            if len(finders) > _MOST_NAMES:
                by += f" and {len(finders) - _MOST_NAMES} more"
            text = f"the endpoint {where} at which {by} found {name} {outcome}, since {reason}"
            texts.setdefault(f"discovered/{name}", []).append(f"{text}; see from where {name} sends packets")
        return {key: "; ".join(sorted(several)[:_MOST_NAMES]) for key, several in texts.items()}

    def _refuse(self, key: str, address: UDPAddress | None, reason: str, outcome: str, finder: str) -> None:
        name = self._owners[key].name
        where = str(Endpoint(address.ip, address.port)) if address else ""
        self._refused.setdefault((name, where, reason, outcome), []).append(finder)

    def _reason(self, key: str, address: UDPAddress | None) -> str:
        """Why ``address`` cannot be the endpoint of the peer with ``key``, "" if it can, or if that peer's
        endpoint is never looked up."""
        if address is None or not address.ip or key not in self._owners:
            return ""
        known = self._verdicts.get((key, address.ip))
        if known is None:
            known = self._verdicts[key, address.ip] = self._judge(key, address.ip)
        return known

    def _judge(self, key: str, ip: str) -> str:
        if reason := unusable_endpoint(ip):
            return reason
        owner = self._owners[key]
        if ip in owner.internal_ips:
            return ""  # it has no route through WireGuard while it is the endpoint
        return self._overlay.holds(ip, filter(_is_routed, owner.networks))

    @cached_property
    def _overlay(self) -> Overlay:
        return Overlay(self._settings.subnet, [node.subnet for node in self._nodes.values()])

    @cached_property
    def _owners(self) -> dict[str, _Owner]:
        """Those that have a keepalive, by public key."""
        granularity = self._settings.mesh_granularity
        locations: dict[str, tuple[set[str], list[str]]] = {}
        for node in self._nodes.values():
            ips, networks = locations.setdefault(location_of(node, granularity), (set(), []))
            networks += node.allowed_location_ips
            if node.internal_ip:
                ips.add(address_text(node.internal_ip))
        peers = [peer for peer in self._peers if peer.persistent_keepalive]
        owners = {peer.public_key: _Owner(name_of(peer), frozenset(), peer.allowed_ips) for peer in peers}
        for node in self._nodes.values():
            if node.persistent_keepalive:
                owners[node.key] = _Owner(name_of(node), *locations[location_of(node, granularity)])
        return owners


def _is_routed(network: str) -> bool:
    ip, bits = parse_interface(network)
    return bits >= WIDEST[ip.version]
