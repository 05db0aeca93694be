"""Who gets what two claim at once, what the plan makes of it, and what a person is told."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.mesh.claims import MOST_TOLD, settle
from kilo.mesh.planner import Planned, plan
from kilo.model.host import HostFacts, Link
from kilo.model.node import Node, Peer
from kilo.model.plan import PlannedPeer, Route, SetEntry
from kilo.model.settings import Settings
from tests.unit.mesh.states import STATES, at, cluster, host_of, inputs, key, node, peer, planned, topology
from tests.unit.mesh.traffic import World

State = tuple[list[Node], list[Peer]]
TWO, FOUR = STATES["two in one location"], STATES["two locations"]


def of_kind(result: Planned, kind: type[Any]) -> list[Any]:
    return [item for item in result.items.values() if isinstance(item, kind)]


def joined_by(state: State, *more: Node | Peer) -> State:
    return cluster(*state[0], *state[1], *more)


def holders(result: Planned, network: str) -> list[str]:
    """The public keys of those that WireGuard gives ``network``."""
    return [p.public_key for p in of_kind(result, PlannedPeer) if network in p.allowed_ips]


def is_nobodys(result: Planned, network: str) -> bool:
    """Whether there is nothing of ``network`` in a plan: route, allowed IP, or set entry."""
    entries = {entry.network for entry in of_kind(result, SetEntry)}
    return (
        f"route/0/{network}" not in result.items and network not in entries and not holders(result, network)
    )


def connected(of: Node, *links: tuple[str, str]) -> HostFacts:
    """The host of ``of`` with further links: name and address."""
    host = host_of(of)
    more = tuple([Link(name, 9 + i, 1500, addresses=(a,)) for i, (name, a) in enumerate(links)])
    return msgspec.structs.replace(host, links=host.links + more, ignored_links=("kilo0", "kube-bridge"))


# one network


def test_two_that_claim_one_network_are_told_apart_and_named() -> None:
    state = cluster(node("n1", "x"), node("n2", "y"), node("n3", "z", subnet="10.2.2.0/24"))
    result = planned(state)
    assert holders(result, "10.2.2.0/24") == [key("n2")]
    route = result.items["route/0/10.2.2.0/24"]
    assert isinstance(route, Route)
    assert route.via == "10.4.0.2"
    assert result.conflicts == {
        "network/10.2.2.0/24": "node n2 and node n3 claim 10.2.2.0/24; the first counts"
    }


def test_the_way_to_an_endpoint_is_not_by_a_segment_that_has_lost_its_address() -> None:
    """Who has it gets no route to it, since its tunnel cannot carry itself; the other must not get one."""
    reached = node("n2", "y", internal_ip="198.51.100.2/24", endpoint=at("198.51.100.2"))
    state = cluster(node("n1", "x"), reached, node("n3", "z", internal_ip="198.51.100.2/24"))
    result = planned(state)
    assert holders(result, "198.51.100.2/32") == [key("n2")]
    assert "route/0/198.51.100.2/32" not in result.items
    assert "route/0/10.2.3.0/24" in result.items


def test_nobody_far_away_takes_over_what_is_near() -> None:
    """Another segment claims our pods, and the private address of our neighbour."""
    thief = node("n3", "w", subnet="10.2.1.0/24", internal_ip="10.0.0.2/24")
    state = joined_by(TWO, thief)
    for name in ("n1", "n2"):
        result = planned(state, name, encapsulate="never")
        assert "route/0/10.0.0.2/32" not in result.items
        route = result.items.get("route/0/10.2.1.0/24")
        assert route == (Route("10.2.1.0/24", "private", "10.0.0.1", onlink=True) if name == "n2" else None)
    (other,) = of_kind(planned(state), PlannedPeer)
    assert other.allowed_ips == ("10.4.0.1/32",)


def test_a_peer_with_the_key_of_this_host_is_left_out() -> None:
    state = cluster(node("n1", "x"), peer("p", "10.5.0.1/32"))
    clone = msgspec.structs.replace(state[1][0], public_key=key("n1"))
    result = planned((state[0], [clone]))
    assert of_kind(result, PlannedPeer) == []
    assert set(result.conflicts) == {f"key/{key('n1')}"}


def test_two_peers_with_one_network_are_both_named_on_every_node_and_the_same_one_has_it() -> None:
    state = joined_by(FOUR, peer("b", "10.5.0.1/32"), peer("a", "10.5.0.1/32"), peer("c", "10.5.0.1/32"))
    for name in ("n1", "n2", "n3", "n4"):
        result = planned(state, name)
        told = "peer a, peer b and peer c claim 10.5.0.1/32; the first counts"
        assert result.conflicts == {"network/10.5.0.1/32": told}
        assert holders(result, "10.5.0.1/32") == ([key("a")] if result.summary.leader else [])
        assert "route/0/10.5.0.1/32" in result.items


def test_host_bits_make_no_difference() -> None:
    result = planned(
        joined_by(TWO, peer("a", "10.5.0.1/24"), peer("b", "10.5.0.9/24"), peer("c", "10.5.0.1/24"))
    )
    assert holders(result, "10.5.0.0/24") == [key("a")]
    told = "peer a, peer b and peer c claim 10.5.0.0/24; the first counts"
    assert result.conflicts == {"network/10.5.0.0/24": told}


def test_a_peer_that_names_a_network_twice_claims_it_once() -> None:
    state = joined_by(TWO, peer("a", "10.5.0.1/32", "10.5.0.1/32", "10.6.0.1/24", "10.6.0.2/24"))
    assert planned(state).conflicts == {}


@pytest.mark.parametrize("network", ["10.2.3.0/24", "10.0.0.3/32", "10.4.0.2/32"])
def test_what_a_node_has_is_no_peers(network: str) -> None:
    result = planned(joined_by(FOUR, peer("p", network)))
    who = "location:y" if network == "10.4.0.2/32" else "node n3"
    assert result.conflicts == {f"network/{network}": f"{who} and peer p claim {network}; the first counts"}
    assert holders(result, network) == [key("n3")]
    assert f"entry/masquerade_from/{network}" not in result.items


def test_a_neighbour_with_our_pod_cidr_does_not_get_our_pods() -> None:
    result = planned(cluster(node("n1", "x"), node("n2", "x", subnet="10.2.1.0/24")))
    assert "route/0/10.2.1.0/24" not in result.items
    told = "node n1 and node n2 claim 10.2.1.0/24; the first counts"
    assert result.conflicts == {"network/10.2.1.0/24": told}


def test_three_names_and_how_many_more() -> None:
    state = joined_by(TWO, *[peer(f"p{i}", "10.5.0.1/32") for i in range(9)])
    told = "peer p0, peer p1, peer p2, peer p3 and 5 more claim 10.5.0.1/32; the first counts"
    assert planned(state).conflicts == {"network/10.5.0.1/32": told}


# pods


@pytest.mark.parametrize("network", ["10.2.1.7/32", "10.2.1.128/25", "10.2.3.7/32", "10.2.4.0/28"])
@pytest.mark.parametrize("hostname", ["n1", "n2", "n3"])
def test_a_peer_steals_no_pods(network: str, hostname: str) -> None:
    result = planned(joined_by(FOUR, peer("thief", network, "10.5.0.1/32")), hostname)
    assert is_nobodys(result, network)
    assert "route/0/10.5.0.1/32" in result.items, "the rest of the Peer stays"
    (told,) = result.conflicts.values()
    owner = network.split(".")[2]
    assert f"peer thief claims {network}, inside 10.2.{owner}.0/24, the pod CIDR of node n{owner}" in told


@pytest.mark.parametrize("granularity", ["location", "full"])
def test_pods_are_reached_whatever_a_peer_claims(granularity: str) -> None:
    world = World(joined_by(FOUR, peer("thief", "10.2.1.7/32", "10.2.4.0/25")), mesh_granularity=granularity)
    for a, b in permutations(world.nodes.values(), 2):
        for pod in (b.subnet.replace(".0/24", ".7"), b.subnet.replace(".0/24", ".200")):
            assert world.send(a.name, a.subnet.replace(".0/24", ".9"), pod)[-1] == b.name


@pytest.mark.parametrize(
    ("what", "thief", "network"),
    [
        ("another segment's pods", node("n9", "w", subnet="10.2.1.64/26"), "10.2.1.64/26"),
        ("another segment's address", node("n9", "w", internal_ip="10.2.1.7/24"), "10.2.1.7/32"),
        ("a neighbour's pods", node("n9", "x", subnet="10.2.1.64/26"), "10.2.1.64/26"),
    ],
)
def test_nobodys_claim_takes_pods_from_their_own_node(what: str, thief: Node, network: str) -> None:
    state = joined_by(FOUR, thief)
    result = planned(state)
    assert f"route/0/{network}" not in result.items, what
    assert holders(result, network) == []
    told = f"node n9 claims {network}, inside 10.2.1.0/24, the pod CIDR of node n1"
    assert told in result.conflicts[f"network/{network}"]
    elsewhere = planned(state, "n3")
    assert told in elsewhere.conflicts[f"network/{network}"]
    assert f"route/0/{network}" in elsewhere.items, "between nodes the longest prefix wins, as in Go"


def test_wider_than_pods_is_no_conflict() -> None:
    """The longest prefix wins, in routes and in WireGuard."""
    state = joined_by(FOUR, peer("office", "10.2.0.0/15"))
    result = planned(state)
    assert result.conflicts == {}
    assert holders(result, "10.2.0.0/15") == [key("office")]
    world = World(state)
    for a, b in permutations(world.nodes.values(), 2):
        assert (
            world.send(a.name, a.subnet.replace(".0/24", ".9"), b.subnet.replace(".0/24", ".7"))[-1] == b.name
        )
    assert world.send("n2", "10.2.2.9", "10.3.0.1")[-1] == "office"


def test_peers_may_nest() -> None:
    result = planned(joined_by(TWO, peer("office", "10.6.0.0/24"), peer("laptop", "10.6.0.7/32")))
    assert result.conflicts == {}
    assert holders(result, "10.6.0.7/32") == [key("laptop")]


# what this host is connected to


@pytest.mark.parametrize(
    "network", ["10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/25", "203.0.113.0/24", "172.17.0.1/32"]
)
def test_a_peer_takes_no_network_from_our_links(network: str) -> None:
    state = joined_by(TWO, peer("thief", network), node("n3", "y", internal_ip="192.168.0.3/24"))
    for name in ("n1", "n2"):
        result = planned(state, name, host=connected(inputs(state, name).local, ("docker0", "172.17.0.1/16")))
        assert is_nobodys(result, network)
        assert f"peer thief claims {network}" in result.conflicts[f"network/{network}"]
        assert "it does not get it here" in result.conflicts[f"network/{network}"]


def test_who_is_not_connected_there_sends_it_to_the_peer() -> None:
    """Another location has that network at home, too."""
    state = joined_by(TWO, peer("office", "10.0.0.0/24"), node("n3", "y", internal_ip="192.168.0.3/24"))
    result = planned(state, "n3")
    assert result.conflicts == {}
    assert holders(result, "10.0.0.0/24") == [key("office")]
    assert "route/0/10.0.0.0/24" in result.items


def test_one_address_of_a_link_that_a_peer_names_is_meant_and_named() -> None:
    result = planned(joined_by(TWO, peer("laptop", "10.0.0.77/32")))
    assert holders(result, "10.0.0.77/32") == [key("laptop")]
    told = (
        "peer laptop claims 10.0.0.77/32, inside 10.0.0.0/24, to which this host is connected by eth0:"
        " no host there is reached at it"
    )
    assert result.conflicts == {"network/10.0.0.77/32": told}


def test_the_other_nodes_of_a_shared_private_network_are_no_conflict() -> None:
    """In full granularity all private addresses go through WireGuard: that is what it is for."""
    for name in ("n1", "n3"):
        result = planned(FOUR, name, mesh_granularity="full")
        assert result.conflicts == {}
        assert "route/0/10.0.0.4/32" in result.items


def test_pods_inside_a_wide_private_network_are_reached_and_named_once() -> None:
    wide = [msgspec.structs.replace(n, internal_ip=n.internal_ip.replace("/24", "/8")) for n in FOUR[0]]
    result = planned((wide, []))
    assert holders(result, "10.2.3.0/24") == [key("n3")]
    assert set(result.conflicts) == {"subnet/networks-of-this-host", "pods/10.0.0.0/8"}
    told = result.conflicts["pods/10.0.0.0/8"]
    assert "10.0.0.0/8, to which this host is connected by eth0: 10.2.2.0/24 of node n2, 10.2.3.0/24" in told


def test_pods_do_not_take_a_private_network() -> None:
    """A pod CIDR that holds a neighbour would lead it, and the tunnel to it, away."""
    thief = node("n9", "w", subnet="10.0.0.0/25", internal_ip="192.168.0.9/24")
    for name in ("n1", "n2"):
        result = planned(joined_by(TWO, thief), name)
        assert is_nobodys(result, "10.0.0.0/25")
        assert "node n9 claims 10.0.0.0/25, which holds 10.0.0." in result.conflicts["network/10.0.0.0/25"]


def test_neighbours_beyond_a_router_are_not_led_away() -> None:
    """n2 is in our location but not in our network: a route that holds it would carry the tunnel to it."""
    state = cluster(node("n1", "x"), node("n2", "x", internal_ip="10.0.9.2/24"), peer("p", "10.0.8.0/21"))
    result = planned(state, encapsulate="crosssubnet")
    assert is_nobodys(result, "10.0.8.0/21")
    assert "holds 10.0.9.2, near this host" in result.conflicts["network/10.0.8.0/21"]


def test_wider_than_our_network_is_no_conflict_and_pods_are_still_masqueraded_there() -> None:
    state = joined_by(TWO, peer("office", "10.0.0.0/22"))
    result = planned(state)
    assert result.conflicts == {}
    assert holders(result, "10.0.0.0/22") == [key("office")]
    known = {e.network for e in of_kind(result, SetEntry) if e.set == "no_masquerade_to"}
    assert {"10.0.1.0/24", "10.0.2.0/23", "10.0.0.1/32", "10.0.0.2/32"} <= known
    assert not {"10.0.0.0/22", "10.0.0.0/23", "10.0.0.0/24"} & known


def test_our_own_links_are_nobodys() -> None:
    host = connected(TWO[0][0], ("kilo0", "10.4.0.1/16"), ("kube-bridge", "10.2.1.1/24"))
    assert planned(TWO, host=host).conflicts == {}


@pytest.mark.parametrize(("network", "kept"), [("10.0.0.128/25", False), ("10.0.0.77/32", True)])
def test_another_locations_printer_is_judged_as_a_peer(network: str, kept: bool) -> None:
    printer = node("n3", "y", internal_ip="192.168.0.3/24", allowed_location_ips=(network,))
    result = planned(joined_by(TWO, printer))
    assert f"location:y claims {network}" in result.conflicts[f"network/{network}"]
    assert (f"route/0/{network}" in result.items) == kept
    assert holders(result, network) == ([key("n3")] if kept else [])
    at_home = planned(joined_by(TWO, printer), "n3")
    assert f"entry/masquerade_to/{network}" in at_home.items
    assert at_home.conflicts == {}


def test_an_allowed_location_ip_that_does_not_stand_is_named() -> None:
    state = cluster(
        node("n1", "x", allowed_location_ips=("172.30.0.0/16",)), node("n2", "y"), peer("p", "172.30.0.8/29")
    )
    told = "location:x claims 172.30.0.0/16, which overlaps what peer p has: it does not get it"
    assert planned(state).conflicts == {"network/172.30.0.0/16": told}


# the subnet of WireGuard addresses


@pytest.mark.parametrize(
    ("kind", "flags", "told"),
    [
        ("pod-CIDRs", {"subnet": "10.2.3.0/24"}, "pod CIDRs: 10.2.3.0/24 of node n3;"),
        ("pod-CIDRs", {"subnet": "10.2.3.64/26"}, "pod CIDRs: 10.2.3.0/24 of node n3;"),
        ("pod-CIDRs", {"subnet": "10.2.0.0/16"}, "10.2.4.0/24 of node n4;"),
        ("service-CIDRs", {"service_cidrs": ("10.0.0.0/8", "10.43.0.0/16")}, "service CIDRs: 10.0.0.0/8;"),
        ("addresses-of-nodes", {"subnet": "10.0.0.0/30"}, "nodes: 10.0.0.1 of node n1, 10.0.0.2 of node n2"),
        ("networks-of-this-host", {"subnet": "10.0.0.64/26"}, "of this host: 10.0.0.0/24 (eth0);"),
    ],
)
def test_a_subnet_that_is_somebody_elses_is_named_and_used(
    kind: str, flags: dict[str, Any], told: str
) -> None:
    result = planned(FOUR, **flags)
    assert told in result.conflicts[f"subnet/{kind}"]
    assert len(of_kind(result, PlannedPeer)) == 1
    assert "route/0/10.2.4.0/24" in result.items


def test_a_peer_inside_the_subnet_is_reached_until_a_segment_gets_its_address() -> None:
    result = planned(joined_by(FOUR, peer("p", "10.4.0.99/32")))
    assert holders(result, "10.4.0.99/32") == [key("p")]
    assert "inside the subnet 10.4.0.0/16 of WireGuard" in result.conflicts["network/10.4.0.99/32"]


def test_a_peer_that_claims_the_subnet_needs_no_route_where_the_interface_has_one() -> None:
    state = joined_by(FOUR, peer("p", "10.4.0.0/16"))
    result = planned(state)
    assert "route/0/10.4.0.0/16" not in result.items
    assert holders(result, "10.4.0.0/16") == [key("p")]
    assert "route/0/10.4.0.0/16" in planned(state, "n2").items


# all of them


def test_many_conflicts_are_told_in_part() -> None:
    many = [peer(f"p{i}", f"10.2.1.{i}/32") for i in range(MOST_TOLD + 7)]
    told = planned(joined_by(TWO, *many)).conflicts
    assert len(told) == MOST_TOLD + 1
    assert told["more"] == "7 more conflicts are not listed"


def test_what_concerns_all_and_keys_is_told_before_networks() -> None:
    """A long list is cut at its end; what is rare must not be behind what there can be much of."""
    many = [peer(f"p{i}", f"10.2.1.{i % 256}/32", f"10.2.2.{i % 256}/32") for i in range(MOST_TOLD)]
    clone = node("n8", "w", key=many[0].public_key)
    told = planned(joined_by(TWO, *many, clone), subnet="10.2.0.0/16").conflicts
    assert "subnet/pod-CIDRs" in told
    assert f"key/{clone.key}" in told
    assert len(told) == MOST_TOLD + 1


def test_without_a_host_what_the_cluster_says_is_enough() -> None:
    state = joined_by(FOUR, peer("thief", "10.2.3.7/32", "10.0.0.0/25"))
    told = settle(topology(state), Settings("n1", service_cidrs=("10.4.9.0/24",))).conflicts
    assert set(told) == {"network/10.2.3.7/32", "network/10.0.0.0/25", "subnet/service-CIDRs"}


NETWORKS = st.sampled_from(
    ["10.2.1.0/24", "10.2.1.64/26", "10.2.2.7/32", "10.0.0.0/25", "10.0.0.2/32", "10.5.0.1/32", "10.0.0.0/8"]
)
MEMBERS = st.lists(
    st.builds(lambda i, networks: peer(f"p{i}", *networks), st.integers(1, 4), st.lists(NETWORKS, max_size=3))
    | st.builds(lambda i, cidr: node(f"n{i}", "xyz"[i % 3], subnet=cidr), st.integers(5, 9), NETWORKS),
    unique_by=lambda member: member.name,
    max_size=5,
)


@given(MEMBERS, st.sampled_from(["n1", "n2", "n3"]), st.randoms())
def test_the_verdict_depends_on_no_order(
    members: Sequence[Node | Peer], hostname: str, shuffler: Any
) -> None:
    state = joined_by(FOUR, *members)
    given_first = planned(state, hostname)
    nodes, peers = list(state[0]), list(state[1])
    shuffler.shuffle(nodes)
    shuffler.shuffle(peers)
    assert plan(inputs((nodes, peers), hostname)) == given_first


@given(MEMBERS, st.sampled_from(["n1", "n3"]))
def test_no_network_goes_to_two(members: Sequence[Node | Peer], hostname: str) -> None:
    """The kernel would give it to the last, and every pass would find a difference."""
    result = planned(joined_by(FOUR, *members), hostname)
    networks = [network for p in of_kind(result, PlannedPeer) for network in p.allowed_ips]
    assert len(networks) == len(set(networks))
