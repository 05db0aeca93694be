"""Discovered endpoints that lead nowhere: which are neither announced nor accepted from other nodes. Pure.

WireGuard learns an endpoint from the last packet of a peer, or has it from a person. An address inside the
mesh is reached through the very tunnel that would be sent to it, and one such as loopback is another host's
everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property

from kilo.mesh.endpoints import Overlay, unusable_endpoint
from kilo.mesh.owners import name_of
from kilo.mesh.topology import Topology, location_of
from kilo.model.net import address_text, parse_interface, single
from kilo.model.node import Endpoint, Node, Peer, UDPAddress
from kilo.model.settings import Settings

_MOST_NAMES = 4
_WIDEST = {4: 8, 6: 7}
"""The shortest prefix of a route: no packet is led into the tunnel by an allowed IP that is wider."""

Discovered = Mapping[str, UDPAddress | None]
"""By public key; None stands for an endpoint that was lost."""


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
        name = self._owners[key][0]
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
        _, internal_ip, allowed_ips = self._owners[key]
        if ip == internal_ip:
            return ""  # it has no route through WireGuard while it is the endpoint
        return self._overlay.holds(ip, filter(_is_routed, allowed_ips))

    @cached_property
    def _overlay(self) -> Overlay:
        return Overlay(self._settings.subnet, [node.subnet for node in self._nodes.values()])

    @cached_property
    def _owners(self) -> dict[str, tuple[str, str, tuple[str, ...]]]:
        """By public key, those that have a keepalive: name, internal IP (IP or ""), and allowed IPs."""
        members = [node for node in self._nodes.values() if node.persistent_keepalive]
        peers = [peer for peer in self._peers if peer.persistent_keepalive]
        owners = {peer.public_key: (name_of(peer), "", peer.allowed_ips) for peer in peers}
        for node in members:
            internal_ip = address_text(node.internal_ip) if node.internal_ip else ""
            location = location_of(node, self._settings.mesh_granularity)
            owners[node.key] = (name_of(node), internal_ip, tuple(self._allowed_of_locations[location]))
        return owners

    @cached_property
    def _allowed_of_locations(self) -> dict[str, list[str]]:
        """Internal IPs and allowed location IPs: a leader's WireGuard peer has those of its location."""
        allowed: dict[str, list[str]] = {}
        for node in self._nodes.values():
            found = allowed.setdefault(location_of(node, self._settings.mesh_granularity), [])
            found += node.allowed_location_ips
            if node.internal_ip:
                found.append(single(address_text(node.internal_ip)))
        return allowed


def _is_routed(network: str) -> bool:
    ip, bits = parse_interface(network)
    return bits >= _WIDEST[ip.version]
