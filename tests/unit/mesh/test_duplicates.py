"""Addresses of other nodes that this host has as well: named, and no route goes by them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kilo.mesh.planner import Planned
from kilo.model.host import HostFacts, Link
from kilo.model.node import Node
from kilo.model.plan import Route, Rule, SetEntry
from tests.unit.mesh.states import TWO_LOCATIONS, cluster, host_of, node, peer, planned

N1 = TWO_LOCATIONS[0][0]
"""Leads location x; n2 is its neighbour, n3 and n4 are in location y."""


def host_with(address: str, of: Node = N1, name: str = "eth1", **facts: Any) -> HostFacts:
    more = Link(name, 9, 1500, addresses=(address,))
    found = host_of(of)
    return msgspec.structs.replace(found, links=(*found.links, more), **facts)


def gateways(result: Planned) -> set[str]:
    return {item.via for item in result.items.values() if isinstance(item, Route)}


def networks(result: Planned) -> set[str]:
    return {item.dst for item in result.items.values() if isinstance(item, Route)}


@pytest.mark.parametrize("encapsulate", ["always", "crosssubnet", "never"])
@pytest.mark.parametrize("prefix", [24, 32])
def test_neighbour_whose_address_is_here_has_no_route_and_is_named(encapsulate: str, prefix: int) -> None:
    host = host_with(f"10.0.0.2/{prefix}")
    result = planned(TWO_LOCATIONS, "n1", host=host, encapsulate=encapsulate)
    assert result.conflicts == {
        "address/10.0.0.2": "node n2 has the internal IP 10.0.0.2, which is also on eth1 of this node, node"
        " n1: this node has no route to the pods of node n2; give one of them another address"
    }
    assert "10.0.0.2" not in gateways(result)
    assert "10.2.2.0/24" not in networks(result) and "10.2.3.0/24" in networks(result)
    assert not [i for i in result.items.values() if isinstance(i, Rule) and i.dst == "10.0.0.2/32"]
    kept = {
        i.network for i in result.items.values() if isinstance(i, SetEntry) and i.set == "no_masquerade_to"
    }
    assert "10.2.2.0/24" not in kept and "10.2.3.0/24" in kept


def test_leader_whose_address_is_here_is_named_as_the_leader() -> None:
    result = planned(TWO_LOCATIONS, "n2", host=host_with("10.0.0.1/24", TWO_LOCATIONS[0][1]))
    (told,) = result.conflicts.values()
    assert "no route to the pods of node n1, the leader of this location, and none to other locations" in told
    assert not networks(result)


def test_internal_ip_that_is_a_broadcast_address_here_is_no_gateway() -> None:
    state = cluster(N1, node("n2", "x", internal_ip="10.0.0.255/16"))
    result = planned(state, "n1")
    (told,) = result.conflicts.values()
    assert "10.0.0.255, which is the broadcast address of 10.0.0.1/24 on eth0 of this node, node n1:" in told
    assert "10.0.0.255" not in gateways(result)


def test_internal_ip_of_two_nodes_is_named_on_both_once() -> None:
    state = cluster(N1, node("n2", "x", internal_ip="10.0.0.1/24"))
    for name, own in (("n1", state[0][0]), ("n2", state[0][1])):
        (told,) = planned(state, name, host=host_of(own)).conflicts.values()
        assert "node n1" in told and "node n2" in told and "10.0.0.1/32" in told


@pytest.mark.parametrize("granularity", ["location", "full"])
def test_address_of_another_segments_node_that_is_here_is_named_and_the_route_stays(granularity: str) -> None:
    host = host_with("10.0.0.3/32", name="kube-ipvs0")
    result = planned(TWO_LOCATIONS, "n1", host=host, mesh_granularity=granularity)
    told = result.conflicts["address/10.0.0.3"]
    assert told.startswith("node n3 has the internal IP 10.0.0.3, which is also on kube-ipvs0 of this node")
    assert "10.2.3.0/24" in networks(result)


def test_endpoint_of_another_segment_that_is_here_is_named_on_both() -> None:
    twin = node("n3", "y", endpoint=N1.endpoint)
    state = cluster(N1, twin)
    for name, other, own in (("n1", "n3", N1), ("n3", "n1", twin)):
        told = planned(state, name, host=host_of(own)).conflicts["address/203.0.113.1"]
        assert told.startswith(f"node {other} has the endpoint 203.0.113.1:51820, which is also on eth0")
        assert f"node {name}" in told


def test_wireguard_address_that_is_here_is_no_gateway_but_its_routes_stay() -> None:
    result = planned(TWO_LOCATIONS, "n1", host=host_with("10.4.0.2/32"))
    assert "10.4.0.2" not in gateways(result) and "10.2.3.0/24" in networks(result)
    assert set(result.conflicts) == {"subnet/networks-of-this-host"}


def test_address_on_a_link_of_the_agents_own_is_no_conflict() -> None:
    """It has the WireGuard address of the plan before."""
    host = host_with("10.4.0.2/16", name="kilo0", ignored_links=("kilo0",))
    result = planned(TWO_LOCATIONS, "n1", host=host)
    assert not result.conflicts and "10.4.0.2" in gateways(result)


def test_cilium_gateway_that_is_here_is_left_out() -> None:
    state = cluster(N1, node("n2", "x", cni_compatibility_ip="10.2.2.77/32"), peer("p", "10.5.0.1/32"))
    host = host_with("10.2.2.77/32")
    result = planned(state, "n1", host=host, compatibility="cilium")
    assert "10.2.2.77" not in gateways(result)
