"""What a plan does with endpoints that no packet reaches, and what is told of them."""

from __future__ import annotations

import msgspec
import pytest

from kilo.mesh.planner import Planned
from kilo.model.host import Link
from kilo.model.node import UDPAddress
from kilo.model.plan import PlannedPeer
from tests.unit.mesh.states import at, cluster, host_of, key, node, peer, planned

BAD = [
    "0.0.0.0",
    "224.0.0.1",
    "127.0.0.1",
    "255.255.255.255",
    "169.254.1.1",
    "::",
    "::1",
    "ff02::1",
    "fe80::1",
]
INSIDE = ["10.2.2.7", "10.2.3.7", "10.4.0.2", "10.4.9.9"]
HEALTHY = [node("n1", "x"), node("n2", "y")]


def planned_peer(result: Planned, name: str) -> PlannedPeer:
    item = result.items[f"peer/{key(name)}"]
    assert isinstance(item, PlannedPeer)
    return item


@pytest.mark.parametrize("address", BAD + INSIDE)
def test_node_with_an_unusable_endpoint_is_a_peer_without_one_and_named(address: str) -> None:
    bad = node("n3", "z", endpoint=at(address), forced_endpoint=True)
    state = cluster(*HEALTHY, bad)
    result = planned(state)
    peer_3 = planned_peer(result, "n3")
    assert (peer_3.endpoint_ip, peer_3.endpoint_port) == ("", 0)
    assert {"route/0/10.2.3.0/24", "entry/no_masquerade_to/10.2.3.0/24"} <= result.items.keys()
    assert result.conflicts.keys() == {"endpoint/location:z"}
    told = result.conflicts["endpoint/location:z"]
    assert told.startswith(f"the endpoint {at(address)} of node n3 is not used, since {address} ")
    assert "force-endpoint" in told
    assert planned_peer(result, "n2").endpoint_ip == "203.0.113.2", "it costs no other"


@pytest.mark.parametrize("address", BAD + INSIDE)
def test_local_node_with_an_unusable_endpoint_is_told_and_announces_it_as_given(address: str) -> None:
    bad = node("n3", "z", endpoint=at(address), forced_endpoint=True)
    result = planned(cluster(*HEALTHY, bad), "n3")
    assert result.conflicts.keys() == {"endpoint/own"}
    told = result.conflicts["endpoint/own"]
    assert told.startswith(f"the endpoint {at(address)} of this node, node n3, is not used by the others")
    assert result.announcement.endpoint == at(address)


@pytest.mark.parametrize("address", [*BAD, "10.2.2.7", "10.4.9.9"])
def test_peer_with_an_unusable_endpoint_has_none_and_is_named(address: str) -> None:
    office = peer("office", "10.6.0.0/24", endpoint=at(address))
    result = planned(cluster(*HEALTHY, office))
    assert planned_peer(result, "office").endpoint_ip == ""
    assert planned_peer(result, "office").allowed_ips == ("10.6.0.0/24",)
    assert "route/0/10.6.0.0/24" in result.items
    told = result.conflicts["endpoint/peer office"]
    assert (
        told.startswith(f"the endpoint {at(address)} of peer office is not used") and "spec.endpoint" in told
    )


def test_peer_with_a_mapped_endpoint_is_judged_by_the_ipv4_address_in_it() -> None:
    office = peer("office", "10.6.0.0/24", endpoint=at("::ffff:127.0.0.1"))
    assert "is a loopback address" in planned(cluster(*HEALTHY, office)).conflicts["endpoint/peer office"]


def test_peer_whose_allowed_ip_is_refused_keeps_an_endpoint_inside_it() -> None:
    office = peer("office", "0.0.0.0/0", "10.6.0.0/24", endpoint=at("198.51.100.9"))
    result = planned(cluster(*HEALTHY, office))
    assert planned_peer(result, "office").endpoint_ip == "198.51.100.9"
    assert "endpoint/peer office" not in result.conflicts


def test_peer_whose_endpoint_is_in_its_own_allowed_ips_keeps_it() -> None:
    """netctl withholds the one network that would lead its packets away; the other works."""
    office = peer("office", "198.51.100.0/24", "10.77.0.0/16", endpoint=at("198.51.100.9"))
    result = planned(cluster(*HEALTHY, office))
    assert planned_peer(result, "office").endpoint_ip == "198.51.100.9"
    assert "endpoint/peer office" not in result.conflicts


@pytest.mark.parametrize(("bits", "used"), [(24, True), (16, False)])
def test_endpoint_in_the_subnet_is_used_where_this_host_is_connected_to_a_narrower_network(
    bits: int, used: bool
) -> None:
    """The kernel sends by the link's own route, which is longer than that of the WireGuard interface."""
    far = node("n3", "z", endpoint=at("10.4.9.103"), internal_ip="10.4.9.3/24")
    host = host_of(HEALTHY[0])
    lan = Link("eth1", 7, 1500, addresses=(f"10.4.9.1/{bits}",))
    host = msgspec.structs.replace(host, links=(*host.links, lan))
    result = planned(cluster(*HEALTHY, far), host=host)
    assert planned_peer(result, "n3").endpoint_ip == ("10.4.9.103" if used else "")
    assert ("endpoint/location:z" in result.conflicts) != used


def test_node_whose_endpoint_is_its_internal_ip_keeps_it_though_the_subnet_overlaps_it() -> None:
    far = node("n3", "z", endpoint=at("10.4.200.3"), internal_ip="10.4.200.3/24")
    result = planned(cluster(*HEALTHY, far))
    assert planned_peer(result, "n3").endpoint_ip == "10.4.200.3"
    assert "endpoint/location:z" not in result.conflicts


@pytest.mark.parametrize("address", ["0.0.0.0", "10.2.2.7"])
def test_endpoint_that_another_node_found_in_a_wrong_place_is_not_used(address: str) -> None:
    roaming = node("n3", "z", persistent_keepalive=10)
    finder = node("n2", "y", discovered_endpoints={key("n3"): UDPAddress(address, 51820)})
    result = planned(cluster(node("n1", "x"), finder, roaming))
    assert planned_peer(result, "n3").endpoint_ip == "203.0.113.3", "its own"
    assert "is not used" in result.conflicts["discovered/node n3"]
    assert "endpoint/location:z" not in result.conflicts


def test_node_that_does_not_lead_is_told_of_its_own_endpoint() -> None:
    bad = node("n3", "x", endpoint=at("0.0.0.0"), forced_endpoint=True)
    state = cluster(*HEALTHY, bad)
    assert set(planned(state, "n3").conflicts) == {"endpoint/own"}
    assert planned(state, "n2").conflicts == {}, "the leader of its location has a good one"
