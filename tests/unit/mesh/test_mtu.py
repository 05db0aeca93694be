from __future__ import annotations

from typing import Any

import pytest

from kilo.model.host import HostFacts, Link
from kilo.model.node import Node, Peer
from kilo.model.plan import CniTarget, Interface
from tests.unit.mesh.states import cluster, key, node, peer, planned

State = tuple[list[Node], list[Peer]]
LOCAL = node("n1", "x")
ALONE = cluster(LOCAL)


def mtu(state: State, default: int, private: int = 0, **flags: Any) -> int:
    """What is planned with a default link of that MTU (0: none), and a private link of its own."""
    links = [Link("e", 1, default or 9000, addresses=("203.0.113.1/24",))]
    if private:
        links.append(Link("p", 2, private, addresses=("10.0.0.1/24",)))
    host = HostFacts(key("h"), links=tuple(links), default_link="e" if default else "")
    result = planned(state, host=host, **{"mtu": 0, **flags})
    interface = result.items["interface"]
    assert isinstance(interface, Interface)
    assert result.cni == CniTarget("10.2.1.0/24", interface.mtu), "pods have the same"
    return interface.mtu


@pytest.mark.parametrize(("underlay", "expected"), [(1500, 1420), (9000, 8920), (1360, 1280), (1300, 1220)])
def test_it_is_the_underlays_less_what_wireguard_adds(underlay: int, expected: int) -> None:
    assert mtu(ALONE, underlay) == expected


def test_a_flag_is_a_flag() -> None:
    assert mtu(ALONE, 9000, mtu=1400) == 1400
    assert mtu(ALONE, 9000, private=1200, mtu=1400) == 1400


def test_with_nothing_to_measure_it_is_wireguards_own() -> None:
    assert mtu(ALONE, 0) == 1420
    assert mtu(ALONE, 0, private=9000) == 1420


@pytest.mark.parametrize(
    ("what", "state", "flags"),
    [
        ("pods", cluster(node("n1", "x"), node("n2", "y", subnet="fd20:0:0:2::/64")), {}),
        ("a node's private address", cluster(node("n1"), node("n2", "y", internal_ip="fd00::2/64")), {}),
        ("a Peer", cluster(node("n1", "x"), peer("p", "2001:db8::/64")), {}),
        ("WireGuard addresses", ALONE, {"subnet": "fd04::/64"}),
        ("services", ALONE, {"service_cidrs": ("10.43.0.0/16", "fd43::/112")}),
        ("a printer", cluster(node("n1"), node("n2", "y", allowed_location_ips=("fd07::9/128",))), {}),
    ],
)
def test_ipv6_needs_1280(what: str, state: State, flags: dict[str, Any]) -> None:
    assert mtu(state, 1300, **flags) == 1280, what
    assert mtu(state, 1500, **flags) == 1420, what


def test_never_too_small_for_ipv4() -> None:
    assert mtu(ALONE, 500) == 576


@pytest.mark.parametrize(
    ("private", "flags", "expected"),
    [
        (1400, {}, 1380),
        (1400, {"encapsulate": "crosssubnet"}, 1380),
        (1400, {"compatibility": "cilium"}, 1380),
        (1400, {"encapsulate": "never"}, 1420),
        (1440, {}, 1420),
        (1500, {}, 1420),
        (1400, {"prioritise_private_addresses": True}, 1320),
        (1400, {"prioritise_private_addresses": True, "encapsulate": "never"}, 1320),
    ],
)
def test_packets_fit_into_ipip_on_the_private_link(
    private: int, flags: dict[str, Any], expected: int
) -> None:
    assert mtu(ALONE, 1500, private, **flags) == expected
