"""What netctl refuses of a plan."""

from __future__ import annotations

import pytest

from kilo.errors import ProtocolError
from kilo.model.keys import ZERO, PresharedKey
from kilo.model.node import ApiServer
from kilo.model.plan import Firewall, PlanItem, PlannedPeer, Route, Rule, SetEntry, Summary, Tunnel
from kilo.model.routable import unroutable
from kilo.netctl import validate
from kilo.netctl.validate import Validator, check
from tests.unit.netctl.plans import interface, key, mesh, node

SUBNET = "10.4.0.0/16"
PEER, PODS, PRIVATE = node(1)


def peer(**changes: object) -> PlannedPeer:
    values: dict[str, object] = {"public_key": key(1), "allowed_ips": ("10.2.1.0/24",)}
    return PlannedPeer(**{**values, **changes})  # type: ignore[arg-type]


GOOD: list[PlanItem] = [
    interface(),
    interface(address="", private_ip=""),
    PEER,
    peer(allowed_ips=("10.1.0.10/24", "0.0.0.0/0", "fd00::/8"), keepalive=65535),
    peer(endpoint_ip="2001:db8::1", endpoint_port=1, preshared_key=PresharedKey(key(9))),
    PODS,
    PRIVATE,
    Route("10.0.0.0/8", "wireguard"),
    Route("fc00::/7", "private", "fd00::1"),
    Route("fd10::/64", "wireguard", "10.4.0.2"),
    Route("10.2.1.0/24", "private", "fd00::1"),
    Route("66.66.66.66/32", "tunnel", "10.2.0.0", "10.1.0.1", 1107, onlink=True),
    Rule(1107, "10.2.0.0/24", "10.1.0.11/32"),
    Rule(1107, "", "10.1.0.11/32", "wireguard"),
    SetEntry("no_masquerade_to", "10.2.0.0/24"),
    SetEntry("no_masquerade_to", "0.0.0.0/0"),
    Firewall(True, True),
    Tunnel("ipip", "10.2.0.1/32"),
    Tunnel("flannel", ""),
    ApiServer((), False),
    ApiServer(("192.0.2.1", "2001:db8::1"), True),
    Summary(1, "here", True, 1, 0, 1),
]
BAD: list[tuple[PlanItem, str]] = [
    (ApiServer(("",), True), "one of its addresses is empty"),
    (ApiServer(("192.0.2.1", ""), True), "one of its addresses is empty"),
    (ApiServer(("nobody",), True), "'nobody' is not an IP address"),
    (ApiServer(("192.0.2.1/32",), True), "'192.0.2.1/32' is not an IP address"),
    (ApiServer(("2001:DB8::1",), True), "not an address in its usual form"),
    (ApiServer(("fe80::1%eth0",), True), "has a zone"),
    (Route("0.0.0.0/0", "wireguard"), "as wide as a default route"),
    (Route("::/0", "private", "fd00::1"), "as wide as a default route"),
    (Route("128.0.0.0/1", "wireguard"), "as wide as a default route"),
    (Route("2000::/3", "wireguard"), "as wide as a default route"),
    (Route("10.2.1.1/24", "wireguard"), "not a network"),
    (Route("10.2.1.0", "wireguard"), "not in CIDR notation"),
    (Route("", "wireguard"), "not in CIDR notation"),
    (Route("127.0.0.1/32", "wireguard"), "not to be routed"),
    (Route("169.254.169.254/32", "wireguard"), "not to be routed"),
    (Route("224.0.0.0/24", "wireguard"), "not to be routed"),
    (Route("fe80::/64", "wireguard"), "not to be routed"),
    (Route("10.2.1.0/24", "wireguard", table=255), "table 255 is not ours"),
    (Route("10.2.1.0/24", "wireguard", table=254), "table 254 is not ours"),
    (Route("10.2.1.0/24", "wireguard", via="nobody"), "not an IP address"),
    (Route("10.2.1.0/24", "wireguard", src="10.1.0.1/24"), "not an IP address"),
    (Route("fd10::/64", "private", "10.1.0.1"), "by an IPv4 gateway"),
    (Rule(254, "", "10.1.0.1/32"), "table 254 is not ours"),
    (Rule(1107), "neither src nor dst"),
    (Rule(1107, "0.0.0.0/0"), "too wide"),
    (Rule(1107, "10.2.0.0/24", "fd00::1/128"), "not of one family"),
    (peer(public_key="nonsense"), "public key is 6 bytes long"),
    (peer(public_key=ZERO), "not a key"),
    (peer(allowed_ips=("10.2.1.0",)), "not in CIDR notation"),
    (peer(allowed_ips=("10.2.1.0/24",) * 20_000), "20000 allowed IPs"),
    (peer(keepalive=65536), "keepalive 65536"),
    (peer(keepalive=-1), "keepalive -1"),
    (peer(endpoint_ip="198.51.100.1"), "endpoint port 0"),
    (peer(endpoint_ip="0.0.0.0", endpoint_port=1), "nobody's address"),
    (peer(endpoint_ip="vpn.example.com", endpoint_port=1), "not an IP address"),
    (peer(preshared_key=PresharedKey("c2VjcmV0")), "preshared key is 6 bytes long"),
    (SetEntry("forward_accept_from", "0.0.0.0/0"), "too wide"),
    (SetEntry("ipip_accept_from", "::/0"), "too wide"),
    (SetEntry("masquerade_from", "10.2.0.1/24"), "not a network"),
    (Tunnel("ipip", "127.0.0.1/8"), "not an address for a device"),
    (interface(mtu=100), "mtu 100"),
    (interface(listen_port=0), "port 0"),
    (interface(address="192.168.0.1/24"), "not of the subnet"),
    (interface(address="10.4.0.1/24"), "not of the subnet"),
    (interface(private_ip="10.1.0.10"), "not in CIDR notation"),
]


@pytest.mark.parametrize("item", GOOD, ids=str)
def test_sound_items_pass(item: PlanItem) -> None:
    check(item, SUBNET)


@pytest.mark.parametrize(("item", "why"), BAD, ids=str)
def test_items_that_are_not_are_refused_with_the_reason(item: PlanItem, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        check(item, SUBNET)


def test_a_preshared_key_that_is_none_is_not_quoted() -> None:
    with pytest.raises(ProtocolError) as caught:
        check(peer(preshared_key=PresharedKey("c2VjcmV0")), SUBNET)
    assert "c2VjcmV0" not in str(caught.value)


def test_a_bad_item_costs_itself_alone() -> None:
    validator = Validator(SUBNET)
    plan = mesh(3)
    bad = Route("0.0.0.0/0", "wireguard")
    sound, gone = validator.sift({**plan, bad.key: bad, "route/0/10.9.0.0/16": PODS}, [])
    assert (sound, gone) == (plan, [])
    assert validator.refused == {
        bad.key: f"dst {unroutable('0.0.0.0/0')}",
        "route/0/10.9.0.0/16": "stands under the key route/0/10.9.0.0/16",
    }
    assert validator.accepts("interface") and not validator.accepts(bad.key)


def test_what_a_bad_item_would_replace_stays_and_both_can_go() -> None:
    validator = Validator(SUBNET)
    validator.sift({"interface": interface()}, [])
    worse = interface(mtu=1)
    assert validator.sift({"interface": worse}, []) == ({}, [])
    assert validator.accepts("interface") and "interface" in validator.refused
    assert validator.sift({}, ["interface", "route/0/10.0.0.0/8"]) == ({}, ["interface"])
    assert validator.refused == {} and not validator.accepts("interface")


def test_more_than_a_sane_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "MOST", 4)
    validator = Validator(SUBNET)
    plan = mesh(3)
    sound, _ = validator.sift(plan, [])
    routes = [key for key in sound if key.startswith("route/")]
    assert len(routes) == 4 and len(validator.refused) == 2
    assert set(validator.refused.values()) == {"there are 4 of its kind already"}
    validator.sift({}, routes[:2])
    again, _ = validator.sift({key: plan[key] for key in list(validator.refused)}, [])
    assert len(again) == 2 and not validator.refused
