"""netctl trusts nobody: every item of a plan is judged again before it is acted on. Pure.

An item that is refused is named with the reason; what it would have replaced stays as it was.
Devices need no check: a plan can only name roles.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kilo.errors import ProtocolError
from kilo.model.keys import ZERO, canonical_key
from kilo.model.net import (
    canonical_interface,
    canonical_network,
    intersects,
    parse_interface,
    parse_ip,
    version_of,
)
from kilo.model.node import ApiServer
from kilo.model.plan import Firewall, Interface, PlanItem, PlannedPeer, Route, Rule, SetEntry, Tunnel
from kilo.model.routable import NEVER, unroutable
from kilo.netctl.routes import KILO_TABLE

MOST = 50_000
"""Items of one kind in a plan."""
MOST_ALLOWED_IPS = 10_000
MOST_API_SERVERS = 100
_ACCEPTING = ("forward_accept_from", "forward_accept_to", "ipip_accept_from")
"""Sets whose members are let through: everybody is nobody to let through."""
_MTU = (576, 65535)


class Refused(ProtocolError):
    """Why an item is not acted on."""


class Validator:
    """Passes on what is sound of every change of the plan, and keeps why the rest is not."""

    def __init__(self, subnet: str) -> None:
        self._subnet = subnet
        self._accepted: dict[type, set[str]] = {}
        self.refused: dict[str, str] = {}
        """Plan key to reason, of items in the plan."""

    def accepts(self, key: str) -> bool:
        """Whether there is a sound item under ``key``."""
        return any(key in keys for keys in self._accepted.values())

    def sift(
        self, upserts: Mapping[str, PlanItem], removals: Collection[str]
    ) -> tuple[dict[str, PlanItem], list[str]]:
        """The upserts that are sound, and the removals of items that had been."""
        gone = []
        for key in removals:
            self.refused.pop(key, None)
            for keys in self._accepted.values():
                if key in keys:
                    keys.remove(key)
                    gone.append(key)
        sound = {}
        for key, item in upserts.items():
            keys = self._accepted.setdefault(type(item), set())
            try:
                if key != item.key:
                    raise Refused(f"stands under the key {key}")
                if len(keys) >= MOST and key not in keys:
                    raise Refused(f"there are {MOST} of its kind already")
                check(item, self._subnet)
            except ProtocolError as e:
                name = item.name if isinstance(item, PlannedPeer) else ""
                self.refused[key] = f"{name}: {e}" if name else str(e)
                continue
            self.refused.pop(key, None)
            keys.add(key)
            sound[key] = item
        return sound, gone


def check(item: PlanItem, subnet: str) -> None:
    """Raise ProtocolError if ``item`` must not be acted on. ``subnet``: of WireGuard addresses."""
    if isinstance(item, Route):
        _check_route(item)
    elif isinstance(item, PlannedPeer):
        _check_peer(item)
    elif isinstance(item, SetEntry):
        _check_network("network", item.network, widest=1 if item.set in _ACCEPTING else 0)
        if item.route:
            _check_network("route", item.route)
    elif isinstance(item, Rule):
        _check_rule(item)
    elif isinstance(item, Interface):
        _check_interface(item, subnet)
    elif isinstance(item, Tunnel) and item.address:
        _check_host("address", item.address)
    elif isinstance(item, ApiServer):
        _check_api(item)
    elif isinstance(item, Firewall) and item.pods:
        _check_network("pods", item.pods, widest=1)


def _check_network(field: str, text: str, widest: int = 0) -> None:
    if canonical_network(text) != text:
        raise Refused(f"{field} {text!r} is not a network in its usual form")
    if parse_interface(text)[1] < widest:
        raise Refused(f"{field} {text} is too wide")


def _check_ip(field: str, text: str) -> None:
    if text and str(parse_ip(text)) != text:
        raise Refused(f"{field} {text!r} is not an address in its usual form")


def _check_host(field: str, text: str) -> None:
    """An address with a prefix that a device of ours may have."""
    if canonical_interface(text) != text:
        raise Refused(f"{field} {text!r} is not an address with a prefix in its usual form")
    if any(intersects(text.partition("/")[0] + ("/128" if ":" in text else "/32"), n) for n in NEVER):
        raise Refused(f"{field} {text} is not an address for a device")


def _check_route(route: Route) -> None:
    if route.table not in (0, KILO_TABLE):
        raise Refused(f"table {route.table} is not ours")
    _check_network("dst", route.dst)
    version = version_of(route.dst)
    if reason := unroutable(route.dst):
        raise Refused(f"dst {reason}")
    _check_ip("via", route.via)
    _check_ip("src", route.src)
    if route.via and version == 6 and version_of(route.via) == 4 and route.device != "wireguard":
        raise Refused(f"via {route.via}: an IPv6 route cannot go by an IPv4 gateway")


def _check_rule(rule: Rule) -> None:
    if rule.table != KILO_TABLE:
        raise Refused(f"table {rule.table} is not ours")
    if not rule.src and not rule.dst:
        raise Refused("it has neither src nor dst")
    for field, network in (("src", rule.src), ("dst", rule.dst)):
        if network:
            _check_network(field, network, widest=1)
    if rule.src and rule.dst and version_of(rule.src) != version_of(rule.dst):
        raise Refused(f"src {rule.src} and dst {rule.dst} are not of one family")


def _check_peer(peer: PlannedPeer) -> None:
    _check_key("public key", peer.public_key)
    if peer.preshared_key is not None:
        _check_key("preshared key", peer.preshared_key.value)
    if len(peer.allowed_ips) > MOST_ALLOWED_IPS:
        raise Refused(f"it has {len(peer.allowed_ips)} allowed IPs")
    for network in peer.allowed_ips:
        canonical_network(network)
    if not 0 <= peer.keepalive <= 65535:
        raise Refused(f"keepalive {peer.keepalive} is not 0 to 65535")
    if peer.endpoint_ip:
        _check_ip("endpoint", peer.endpoint_ip)
        if not 1 <= peer.endpoint_port <= 65535:
            raise Refused(f"endpoint port {peer.endpoint_port} is not 1 to 65535")
        address = parse_ip(peer.endpoint_ip)
        if address.is_unspecified or address.is_multicast:
            raise Refused(f"endpoint {peer.endpoint_ip} is nobody's address")


def _check_key(field: str, text: str) -> None:
    """Never quotes the text, which may be a secret."""
    try:
        usual = canonical_key(text)
    except ProtocolError as e:
        raise Refused(f"its {field} is {e}") from e
    if usual != text or text == ZERO:
        raise Refused(f"its {field} is not a key")


def _check_api(api: ApiServer) -> None:
    if len(api.addresses) > MOST_API_SERVERS:
        raise Refused(f"it has {len(api.addresses)} addresses")
    for ip in api.addresses:
        if not ip:
            raise Refused("one of its addresses is empty")
        _check_ip("address", ip)


def _check_interface(interface: Interface, subnet: str) -> None:
    if not _MTU[0] <= interface.mtu <= _MTU[1]:
        raise Refused(f"mtu {interface.mtu} is not {_MTU[0]} to {_MTU[1]}")
    if not 1 <= interface.listen_port <= 65535:
        raise Refused(f"port {interface.listen_port} is not 1 to 65535")
    if interface.private_ip and canonical_interface(interface.private_ip) != interface.private_ip:
        raise Refused(f"private IP {interface.private_ip!r} is not in its usual form")
    if interface.address:
        _check_host("address", interface.address)
        if canonical_network(interface.address) != canonical_network(subnet):
            raise Refused(f"address {interface.address} is not of the subnet {subnet}")
