"""Discovered endpoints that lead nowhere: not announced, not accepted, and named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kilo.mesh.planner import Planned
from kilo.model.host import WireGuardPeerState
from kilo.model.node import Node, Peer, UDPAddress
from kilo.model.plan import PlannedPeer
from tests.unit.mesh.states import at, cluster, node, peer, planned

LAPTOP = peer("laptop", "10.5.0.1/32", persistent_keepalive=25)
NODES = (node("n1", "x"), node("n2", "y"), node("n3", "z"), node("n4", "z"))
ELSEWHERE = "198.51.100.7"
NOWHERE = {
    "10.2.1.5": "lies in the pod CIDR 10.2.1.0/24",
    "10.2.3.5": "lies in the pod CIDR 10.2.3.0/24",
    "10.4.0.2": "lies in the subnet 10.4.0.0/16 of WireGuard addresses",
    "10.5.0.1": "lies in 10.5.0.1/32, an allowed IP of the same peer",
    "127.0.0.1": "is a loopback address",
    "0.0.0.0": "is an unspecified address",
    "224.0.0.1": "is a multicast address",
    "255.255.255.255": "is the broadcast address",
    "169.254.7.7": "is a link-local address",
    "fe80::7": "is a link-local address",
    "::1": "is a loopback address",
}


def heard(of: Node | Peer, ip: str, port: int = 51820) -> dict[str, WireGuardPeerState]:
    """WireGuard has had a packet of ``of`` from there."""
    public_key = of.public_key if isinstance(of, Peer) else of.key
    return {public_key: WireGuardPeerState(public_key, ip, port, last_handshake=1)}


def announcing(of: Node, other: Node | Peer, ip: str) -> Node:
    """``of``, whose annotation says that ``other`` is at ``ip``."""
    public_key = other.public_key if isinstance(other, Peer) else other.key
    found = {**of.discovered_endpoints, public_key: UDPAddress(ip, 51820)}
    return msgspec.structs.replace(of, discovered_endpoints=found)


def endpoint_of(result: Planned, other: Node | Peer) -> str:
    public_key = other.public_key if isinstance(other, Peer) else other.key
    item = result.items[f"peer/{public_key}"]
    assert isinstance(item, PlannedPeer)
    return item.endpoint_ip


@pytest.mark.parametrize(("ip", "reason"), NOWHERE.items(), ids=NOWHERE)
def test_endpoint_found_here_that_leads_nowhere_is_not_announced(ip: str, reason: str) -> None:
    result = planned(cluster(*NODES, LAPTOP), wireguard=heard(LAPTOP, ip))
    assert result.announcement.discovered_endpoints == {}
    assert endpoint_of(result, LAPTOP) == ""
    told = result.conflicts["discovered/peer laptop"]
    assert reason in told and "peer laptop" in told and "is not announced to other nodes" in told


@pytest.mark.parametrize(("ip", "reason"), NOWHERE.items(), ids=NOWHERE)
def test_endpoint_found_elsewhere_that_leads_nowhere_is_not_accepted(ip: str, reason: str) -> None:
    others = (NODES[0], announcing(NODES[1], LAPTOP, ip), *NODES[2:])
    result = planned(cluster(*others, LAPTOP))
    assert endpoint_of(result, LAPTOP) == ""
    told = result.conflicts["discovered/peer laptop"]
    assert reason in told and "node n2 found peer laptop is not used" in told


def test_endpoint_found_elsewhere_gives_way_to_the_next_usable_one() -> None:
    others = (
        NODES[0],
        announcing(NODES[1], LAPTOP, "10.2.1.5"),
        announcing(NODES[2], LAPTOP, ELSEWHERE),
        announcing(NODES[3], LAPTOP, "10.2.1.5"),
    )
    result = planned(cluster(*others, LAPTOP))
    assert endpoint_of(result, LAPTOP) == ELSEWHERE
    assert "at which node n2, node n4 found peer laptop" in result.conflicts["discovered/peer laptop"]


def test_endpoint_found_elsewhere_that_leads_nowhere_leaves_the_peers_own() -> None:
    fixed = msgspec.structs.replace(LAPTOP, endpoint=at(ELSEWHERE))
    result = planned(cluster(NODES[0], announcing(NODES[1], fixed, "10.2.1.5"), fixed))
    assert endpoint_of(result, fixed) == ELSEWHERE


def test_endpoint_found_here_replaces_one_from_elsewhere_that_leads_nowhere() -> None:
    others = (NODES[0], announcing(NODES[1], LAPTOP, "10.2.1.5"))
    result = planned(cluster(*others, LAPTOP), wireguard=heard(LAPTOP, ELSEWHERE))
    assert result.announcement.discovered_endpoints == {LAPTOP.public_key: UDPAddress(ELSEWHERE, 51820)}
    assert endpoint_of(result, LAPTOP) == ELSEWHERE
    assert not result.conflicts


def test_endpoint_announced_before_is_judged_before_wireguard_is_known() -> None:
    """After a start the node's own annotation counts, until netctl has reported."""
    result = planned(cluster(announcing(NODES[0], LAPTOP, "10.2.3.5"), *NODES[1:], LAPTOP))
    assert result.announcement.discovered_endpoints == {}
    assert endpoint_of(result, LAPTOP) == ""


def test_endpoint_of_node_may_be_an_internal_ip_but_not_in_its_allowed_location_ips() -> None:
    roaming = node("n3", "z", persistent_keepalive=10, allowed_location_ips=("192.168.7.0/24",), leader=True)
    for ip, is_used in (("10.0.0.3", True), ("10.0.0.4", True), ("192.168.7.9", False)):
        state = cluster(*NODES[:2], roaming, NODES[3])
        result = planned(state, wireguard=heard(roaming, ip))
        assert bool(result.announcement.discovered_endpoints) is is_used, ip
        assert ("discovered/node n3" in result.conflicts) is not is_used


@pytest.mark.parametrize("network", ["0.0.0.0/0", "128.0.0.0/1"])
def test_endpoint_is_not_judged_by_allowed_ips_that_have_no_route(network: str) -> None:
    exit_node = peer("exit", network, persistent_keepalive=25)
    result = planned(cluster(*NODES, exit_node), wireguard=heard(exit_node, ELSEWHERE))
    assert endpoint_of(result, exit_node) == ELSEWHERE


def test_endpoint_of_peer_without_keepalive_or_of_a_stranger_is_not_judged() -> None:
    still = peer("still", "10.5.0.2/32", endpoint=at(ELSEWHERE))
    stranger = peer("stranger", "10.5.0.3/32")
    others = announcing(announcing(NODES[1], still, "10.2.1.5"), stranger, "10.2.1.5")
    result = planned(cluster(NODES[0], others, still))
    assert endpoint_of(result, still) == ELSEWHERE
    assert not result.conflicts


def test_endpoints_with_odd_text_cost_nothing_else() -> None:
    odd: Any = "{by} {"
    result = planned(cluster(NODES[0], announcing(NODES[1], LAPTOP, odd), LAPTOP))
    assert "is not an IP address" in result.conflicts["discovered/peer laptop"]
