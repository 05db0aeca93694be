"""Rule 7 for routes: packets that carry the tunnel must not be routed into it. Pure.

A route over WireGuard is taken by the peer that has its destination among its allowed IPs. If that
destination covers the address which the peer's own packets are sent to, the route is withheld.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kilo.model.net import canonical_network, contains
from kilo.model.plan import PlanItem, PlannedPeer, Route


class Guard:
    """Knows every peer's allowed IPs, and where its packets go: by the plan, and in fact.

    ``update`` and ``observe`` tell whether an answer of ``reason`` may have changed.
    """

    def __init__(self) -> None:
        self._peers: dict[str, PlannedPeer] = {}
        self._seen: dict[str, str] = {}
        self._blocked: dict[str, frozenset[str]] = {}
        self._reasons: dict[str, str] = {}

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> bool:
        """The plan changed."""
        changed = False
        for key in removals:
            if self._peers.pop(key, None) is not None:
                changed = self._judge(key) or changed
        for key, item in upserts.items():
            if isinstance(item, PlannedPeer):
                self._peers[key] = item
                changed = self._judge(key) or changed
        return changed

    def observe(self, endpoints: Mapping[str, str]) -> bool:
        """Where packets go in fact: addresses by plan key, "" for nowhere yet."""
        moved = [key for key, ip in endpoints.items() if self._seen.get(key, "") != ip]
        moved += [key for key in self._seen if key not in endpoints]
        self._seen = dict(endpoints)
        changed = False
        for key in moved:
            changed = self._judge(key) or changed
        return changed

    def _judge(self, key: str) -> bool:
        peer = self._peers.get(key)
        blocked: frozenset[str] = frozenset()
        if peer is not None:
            targets = {ip for ip in (peer.endpoint_ip, self._seen.get(key, "")) if ip}
            blocked = frozenset(
                canonical_network(n) for n in peer.allowed_ips if any(contains(n, ip) for ip in targets)
            )
        if blocked == self._blocked.get(key, frozenset()):
            return False
        if blocked:
            self._blocked[key] = blocked
        else:
            del self._blocked[key]
        self._reasons = {
            network: f"it would carry the way to its own peer {key.removeprefix('peer/')}"
            for key, networks in self._blocked.items()
            for network in networks
        }
        return True

    def reason(self, route: Route) -> str:
        """Why ``route`` must not be set now; "" if it may."""
        return self._reasons.get(route.dst, "") if route.device == "wireguard" else ""
