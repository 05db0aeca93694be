from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.mesh.topology import CannotPlan, build, find_leader
from kilo.model.node import Endpoint, Node, Peer, UDPAddress
from kilo.model.settings import Settings
from tests.unit.mesh.states import STATES, at, cluster, key, node, peer, topology

State = tuple[list[Node], list[Peer]]
PRIVATE, PUBLIC = at("10.0.0.1"), at("198.51.100.8")
NAMED = Endpoint("node.example.com", 51820)


def candidates(*kinds: tuple[Endpoint, bool]) -> list[Node]:
    return [node(f"n{i}", endpoint=endpoint, leader=leader) for i, (endpoint, leader) in enumerate(kinds)]


@pytest.mark.parametrize(
    ("nodes", "leader"),
    [
        ([], 0),
        (candidates((PRIVATE, False)), 0),
        (candidates((PRIVATE, False), (PUBLIC, False), (PUBLIC, False)), 1),
        (candidates((PRIVATE, True), (PUBLIC, True)), 1),
        (candidates((PUBLIC, False), (PUBLIC, False), (PUBLIC, True)), 2),
        (candidates((PRIVATE, False), (PRIVATE, True)), 1),
        (candidates((PUBLIC, False), (PRIVATE, True)), 1),
        (candidates((PRIVATE, False), (PRIVATE, False)), 0),
        (candidates((NAMED, False), (PUBLIC, False)), 1),
        (candidates((NAMED, True), (PUBLIC, True)), 1),
        (candidates((PRIVATE, False), (at("fd00::1"), False), (at("fd01::1"), False)), 2),
    ],
)
def test_the_leader_is_who_volunteers_and_can_be_reached(nodes: list[Node], leader: int) -> None:
    assert find_leader(nodes) == leader


def test_a_location_is_one_segment() -> None:
    found = topology(STATES["two locations"])
    assert [(s.location, s.hostnames, s.wireguard_ip) for s in found.segments] == [
        ("location:x", ("n1", "n2"), "10.4.0.1"),
        ("location:y", ("n3", "n4"), "10.4.0.2"),
    ]
    assert found.segments[0].allowed_ips == (
        "10.2.1.0/24",
        "10.0.0.1/32",
        "10.2.2.0/24",
        "10.0.0.2/32",
        "10.4.0.1/32",
    )
    assert (found.location, found.leader, found.wireguard_cidr) == ("location:x", True, "10.4.0.1/16")


def test_who_does_not_lead_has_no_wireguard_address() -> None:
    found = topology(STATES["two locations"], "n2")
    assert (found.location, found.leader, found.wireguard_cidr) == ("location:x", False, "10.4.0.0/16")


def test_in_full_granularity_every_node_is_a_segment() -> None:
    found = topology(STATES["two locations"], "n3", mesh_granularity="full")
    assert [s.location for s in found.segments] == ["node:n1", "node:n2", "node:n3", "node:n4"]
    assert found.leader
    assert found.wireguard_cidr == "10.4.0.3/16"


def test_without_a_private_address_a_node_is_its_own_segment() -> None:
    found = topology(STATES["one without private address"], "n5")
    assert [s.location for s in found.segments] == ["location:x", "location:y", "node:n5"]
    assert found.leader
    assert found.own.private_ips == ()
    assert found.own.allowed_ips == ("10.2.5.0/24", "10.4.0.3/32")


def test_segments_are_sorted_by_text() -> None:
    nodes = [node(f"n{i}") for i in (1, 2, 10, 11)]
    found = topology((nodes, []), mesh_granularity="full")
    assert [s.hostnames[0] for s in found.segments] == ["n1", "n10", "n11", "n2"]


@pytest.mark.parametrize(
    ("subnet", "room"), [("10.4.0.0/30", 3), ("10.4.0.0/31", 1), ("255.255.255.252/30", 3), ("fd04::/126", 3)]
)
def test_a_subnet_that_runs_out_is_an_error(subnet: str, room: int) -> None:
    nodes = [node(f"n{i}") for i in range(1, room + 1)]
    settings = Settings("n1", "full", subnet)
    assert len(build(nodes, [], settings).segments) == room
    with pytest.raises(CannotPlan, match=f"{subnet} has {room} addresses for {room + 1} segments"):
        build([*nodes, node("n99")], [], settings)


def test_a_subnet_of_one_address_has_none_to_give() -> None:
    with pytest.raises(CannotPlan):
        build([node("n1")], [], Settings("n1", subnet="10.4.0.0/32"))


def test_the_local_node_must_be_there() -> None:
    with pytest.raises(CannotPlan, match="node n9 "):
        topology(STATES["two locations"], "n9")


@pytest.mark.parametrize(
    ("what", "claims", "kept"),
    [
        ("a node's pods", [["10.2.2.0/25"], [], []], [[], [], []]),
        ("a WireGuard address given already", [["10.4.0.1/32"], [], []], [[], [], []]),
        ("one that is yet to be given", [["10.4.0.3/32"], [], []], [["10.4.0.3/32"], [], []]),
        ("wider than all of the mesh", [["10.0.0.0/8"], [], []], [["10.0.0.0/8"], [], []]),
        ("a later location's", [["10.6.0.0/16"], [], ["10.6.0.0/24"]], [[], [], ["10.6.0.0/24"]]),
        ("lost by an earlier one", [["10.2.2.9/32"], ["10.2.0.0/16"], []], [[], ["10.2.0.0/16"], []]),
        ("twice its own", [["10.6.0.0/24", "10.6.0.0/16"], [], []], [["10.6.0.0/16", "10.6.0.0/24"], [], []]),
        ("a Peer's", [[], ["172.30.0.9/32"], ["172.30.0.0/16"]], [[], [], []]),
        ("with host bits", [["10.6.0.5/24"], ["10.7.0.0/24"], []], [["10.6.0.5/24"], ["10.7.0.0/24"], []]),
    ],
)
def test_allowed_location_ips_must_not_be_anybody_elses(
    what: str, claims: list[list[str]], kept: list[list[str]]
) -> None:
    nodes = [node(f"n{i}", f"l{i}", allowed_location_ips=tuple(c)) for i, c in enumerate(claims, 1)]
    found = topology((nodes, [peer("p", "172.30.0.8/29")]))
    assert [list(s.allowed_location_ips) for s in found.segments] == kept, what


def test_peers_do_not_share_addresses() -> None:
    peers = [
        peer("p3", "10.5.0.2/24", "10.5.0.3/24", "10.5.0.1/24"),
        peer("p2", "10.5.0.1/24", "10.5.0.3/24"),
        peer("p1", "10.5.0.1/24", "10.5.0.2/24", "10.5.0.1/24"),
    ]
    found = topology(([node("n1")], peers))
    assert [(p.name, p.allowed_ips) for p in found.peers] == [
        ("p1", ("10.5.0.1/24", "10.5.0.2/24")),
        ("p2", ("10.5.0.3/24",)),
        ("p3", ()),
    ]


def test_an_endpoint_that_was_found_replaces_one_behind_nat_only() -> None:
    here, there = UDPAddress("198.51.100.1", 1000), UDPAddress("198.51.100.2", 2000)
    found = topology(
        cluster(
            node("n1", "x", discovered_endpoints={key("n3"): here}),
            node("n2", "y", discovered_endpoints={key("n3"): there, key("n2"): there, key("p"): there}),
            node("n3", "z", persistent_keepalive=25),
            peer("p", "10.5.0.1/32", persistent_keepalive=5, endpoint=PUBLIC),
            peer("q", "10.5.0.2/32", endpoint=PUBLIC),
        )
    )
    endpoints = {s.hostnames[0]: str(found.endpoint_of(s)) for s in found.segments}
    assert endpoints == {
        "n1": "203.0.113.1:51820",
        "n2": "203.0.113.2:51820",
        "n3": "198.51.100.1:1000",
    }
    assert [str(found.endpoint_of(p)) for p in found.peers] == ["198.51.100.2:2000", "198.51.100.8:51820"]


def test_an_endpoint_that_was_lost_is_none() -> None:
    found = topology(
        cluster(
            node("n1", "x", discovered_endpoints={key("n2"): None}), node("n2", "y", persistent_keepalive=1)
        )
    )
    assert found.endpoint_of(found.segments[1]) is None


@given(st.sampled_from(sorted(STATES)), st.sampled_from(["location", "full"]), st.randoms())
def test_no_order_matters(name: str, granularity: str, shuffler: random.Random) -> None:
    nodes, peers = STATES[name]
    shuffled: tuple[list[Any], list[Any]] = (list(nodes), list(peers))
    for members in shuffled:
        shuffler.shuffle(members)
    assert topology(shuffled, mesh_granularity=granularity) == topology(
        (nodes, peers), mesh_granularity=granularity
    )
