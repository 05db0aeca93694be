"""Differences of the kernel's objects as lines for people. Pure; no line holds a secret.

Used by kilo.netctl.diff.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from kilo.netctl.netlink.messages import LinkInfo, RouteInfo, RuleInfo
from kilo.netctl.routes import PROTOCOL, way_of
from kilo.netctl.wireguard.device import NO_ENDPOINT, DeviceState, PeerState

Kind = Literal["link", "wireguard", "address", "firewall", "peer", "route", "rule"]
KINDS: tuple[Kind, ...] = ("link", "wireguard", "address", "firewall", "peer", "route", "rule")
Names = Mapping[int, str]
"""Interfaces by index."""


class Difference(NamedTuple):
    """One object: ``sign`` is "+" where it is to be added, "~" changed, "-" removed."""

    sign: str
    kind: Kind
    what: str


def link(before: LinkInfo | None, after: LinkInfo) -> Difference:
    """An interface; netctl deletes none but at its clean-up."""
    if before is None:
        return Difference("+", "link", f"{after.name} type {after.kind} mtu {after.mtu} {_up(after.up)}")
    said = []
    if before.mtu != after.mtu:
        said.append(f"mtu {before.mtu} -> {after.mtu}")
    if before.up != after.up:
        said.append(f"{_up(before.up)} -> {_up(after.up)}")
    return Difference("~", "link", f"{after.name}: {', '.join(said)}")


def _up(up: bool) -> str:
    return "up" if up else "down"


def device(name: str, before: DeviceState, after: DeviceState) -> list[Difference]:
    """Key and port of the WireGuard interface."""
    found = []
    if before.private_key != after.private_key:
        what = "is not set" if before.private_key is None else "differs"
        found.append(Difference("~", "wireguard", f"{name}: the private key {what}"))
    if before.listen_port != after.listen_port:
        found.append(
            Difference("~", "wireguard", f"{name}: port {before.listen_port} -> {after.listen_port}")
        )
    return found


def peer(public_key: str, before: PeerState | None, after: PeerState | None) -> Difference:
    if after is None:
        return Difference("-", "peer", public_key)
    old = before or PeerState(frozenset())
    said = []
    networks = [f"+{n}" for n in sorted(after.allowed_ips - old.allowed_ips)]
    networks += [f"-{n}" for n in sorted(old.allowed_ips - after.allowed_ips)]
    if networks:
        said.append(f"allowed IPs {' '.join(networks)}")
    if old.endpoint != after.endpoint:
        said.append(f"endpoint {_endpoint(old.endpoint)} -> {_endpoint(after.endpoint)}")
    if old.keepalive != after.keepalive:
        said.append(f"keepalive {old.keepalive} -> {after.keepalive}")
    if old.preshared_key != after.preshared_key:
        if old.preshared_key is None:
            said.append("the preshared key is not set")
        else:
            said.append("the preshared key " + ("goes" if after.preshared_key is None else "differs"))
    return Difference("+" if before is None else "~", "peer", f"{public_key}: {', '.join(said)}")


def _endpoint(endpoint: tuple[str, int]) -> str:
    ip, port = endpoint
    if endpoint == NO_ENDPOINT:
        return "none"
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def route(before: RouteInfo | None, after: RouteInfo | None, names: Names) -> Difference:
    """As ``ip route`` writes it, but for our own protocol, which is left out."""
    if before is None or after is None:
        of = after or before
        assert of is not None  # noqa: S101 - there is one of the two
        return Difference("-" if after is None else "+", "route", f"{of.dst}{_way(of, names)}")
    return Difference("~", "route", f"{after.dst}:{_way(before, names)} ->{_way(after, names)}")


def _way(route: RouteInfo, names: Names) -> str:
    return way_of(route, str(names.get(route.link, route.link)))


def rule(before: RuleInfo | None, after: RuleInfo | None) -> Difference:
    """As ``ip rule`` writes it."""
    if before is None or after is None:
        of = after or before
        assert of is not None  # noqa: S101 - there is one of the two
        return Difference("-" if after is None else "+", "rule", rule_text(of))
    return Difference("~", "rule", f"{rule_text(before)} -> {rule_text(after)}")


def rule_text(rule: RuleInfo) -> str:
    """As ``ip rule`` writes it, but for our own protocol."""
    dst = f" to {rule.dst}" if rule.dst else ""
    iif = f" iif {rule.iif}" if rule.iif else ""
    proto = f" proto {rule.protocol}" if rule.protocol != PROTOCOL else ""
    return f"{rule.priority}: from {rule.src or 'all'}{dst}{iif} lookup {rule.table}{proto}"


def in_order(differences: Iterable[Difference]) -> list[Difference]:
    """By kind, each as it was given."""
    return sorted(differences, key=lambda difference: KINDS.index(difference.kind))
