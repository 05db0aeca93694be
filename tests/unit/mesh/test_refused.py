"""Networks that may have no route, and what traffic to them does on every node."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.model.host import HostFacts, Link
from kilo.model.net import canonical_network
from kilo.model.node import Node, Peer
from kilo.model.plan import PlannedPeer, Route, SetEntry
from kilo.netctl.validate import check
from tests.unit.mesh.states import TWO_LOCATIONS, WITH_A_PRINTER, at, cluster, key, node, peer, planned
from tests.unit.mesh.traffic import Lost, World

State = tuple[list[Node], list[Peer]]
OUTSIDE = ("198.51.100.200", "8.8.8.8", "203.0.113.250", "2001:db8:ffff::1")
TOO_WIDE: list[tuple[str, ...]] = [
    ("0.0.0.0/0",),
    ("0.0.0.0/1", "128.0.0.0/1"),
    ("200.0.0.0/6",),
    ("::/0",),
    ("8.0.0.0/7",),
]
NEVER: list[tuple[str, ...]] = [("127.0.0.0/8",), ("169.254.169.254/32",), ("224.0.0.0/4",), ("fe80::/10",)]
ODD = [
    *("0.0.0.0/0", "128.0.0.0/1", "200.0.0.0/6", "127.0.0.0/8", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.77/32"),
    *("10.2.1.0/25", "10.4.0.0/16", "10.4.0.9/32", "10.5.0.7/24", "192.168.7.9/32", "fd00::/8", "::/0"),
]
FLAGS = [{"mesh_granularity": "location"}, {"mesh_granularity": "full"}]


def pod(of: str) -> str:
    return f"10.2.{of[1:]}.7"


def networks_of(world: World, name: str) -> set[str]:
    """Everything that the plan of ``name`` has about networks."""
    found = {route.dst for route in world.items(name, Route)}
    found |= {entry.network for entry in world.items(name, SetEntry)}
    return found.union(*(peer.allowed_ips for peer in world.items(name, PlannedPeer)))


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("allowed_ips", TOO_WIDE + NEVER, ids=str)
def test_peer_with_an_unroutable_network_leaves_the_internet_to_pods(
    allowed_ips: tuple[str, ...], flags: dict[str, str]
) -> None:
    exit_peer = peer("exit", *allowed_ips, "10.5.0.1/32")
    world = World(cluster(*TWO_LOCATIONS[0], exit_peer), **flags)
    for name in world.nodes:
        assert not networks_of(world, name) & set(allowed_ips)
        for destination in OUTSIDE:
            assert world.is_masqueraded(name, pod(name), destination)
            with pytest.raises(Lost, match="has no route"):
                world.send(name, pod(name), destination)
        assert world.send(name, pod(name), "10.5.0.1")[-1] == "exit", "the rest of the Peer works"
        assert not world.is_masqueraded(name, pod(name), "10.5.0.1")


@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
def test_peer_with_an_unroutable_network_is_named_with_what_to_write(name: str) -> None:
    told = planned(cluster(*TWO_LOCATIONS[0], peer("exit", "0.0.0.0/0")), name).conflicts
    assert told.keys() == {"refused/peer exit/0.0.0.0/0"}
    message = told["refused/peer exit/0.0.0.0/0"]
    assert message.startswith("peer exit claims 0.0.0.0/0: 0.0.0.0/0 is as wide as a default route")
    assert "write in spec.allowedIPs the networks" in message


@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
def test_node_with_an_unroutable_location_ip_is_named_and_masquerades_as_before(name: str) -> None:
    wide = msgspec.structs.replace(WITH_A_PRINTER[0][1], allowed_location_ips=("0.0.0.0/0",))
    world = World((([WITH_A_PRINTER[0][0], wide, WITH_A_PRINTER[0][2]]), []))
    told = world.plans[name].conflicts["refused/node n2/0.0.0.0/0"]
    assert "node n2 claims 0.0.0.0/0" in told and "kilo.squat.ai/allowed-location-ips" in told
    assert "0.0.0.0/0" not in networks_of(world, name)
    assert world.is_masqueraded(name, pod(name), "198.51.100.200")
    assert not world.is_masqueraded(name, "198.51.100.77", "198.51.100.200"), "of strangers nothing is"


def test_peer_with_an_unroutable_network_costs_no_node_its_location_ips() -> None:
    world = World((WITH_A_PRINTER[0], [peer("exit", "0.0.0.0/0")]))
    assert "192.168.7.9/32" in networks_of(world, "n3")


@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
def test_pod_cidr_that_is_unroutable_is_in_no_plan_and_named(name: str) -> None:
    state = cluster(node("n1", "x"), node("n2", "x"), node("n3", "y"), node("n9", "z", subnet="127.9.0.0/24"))
    world = World(state)
    assert "127.9.0.0/24" not in networks_of(world, name)
    assert "node n9 has 127.9.0.0/24" in world.plans[name].conflicts["network/127.9.0.0/24"]
    assert world.is_masqueraded(name, pod(name), "127.9.0.5")


def test_peer_whose_key_another_keeps_has_no_route_and_is_masqueraded() -> None:
    twins = [peer("a", "10.5.0.1/32"), peer("b", "10.5.0.2/32")]
    twins[1] = msgspec.structs.replace(twins[1], public_key=twins[0].public_key)
    world = World((TWO_LOCATIONS[0], twins))
    for name in world.nodes:
        assert "10.5.0.2/32" not in networks_of(world, name)
        assert world.is_masqueraded(name, pod(name), "10.5.0.2")
        assert "10.5.0.1/32" in networks_of(world, name)
        assert not world.is_masqueraded(name, pod(name), "10.5.0.1")


def test_node_whose_key_another_keeps_has_no_route_and_is_masqueraded() -> None:
    world = World(cluster(node("n1", "x"), node("n2", "x"), node("n3", "y"), node("n4", "z", key=key("n3"))))
    for name in ("n1", "n2"):
        assert not {"10.2.4.0/24", "10.0.0.4/32"} & networks_of(world, name)
        assert world.is_masqueraded(name, pod(name), "10.2.4.7")
        assert {"10.2.3.0/24", "10.0.0.3/32"} <= networks_of(world, name)


def test_ipv6_network_behind_an_ipv4_gateway_is_masqueraded_and_named() -> None:
    world = World(cluster(*TWO_LOCATIONS[0], peer("office", "2001:db8:6::/48")))
    assert "2001:db8:6::/48" in networks_of(world, "n1"), "a leader reaches it"
    assert "2001:db8:6::/48" not in networks_of(world, "n2")
    told = world.plans["n2"].conflicts["network/2001:db8:6::/48/gateway"]
    assert told.startswith("peer office has 2001:db8:6::/48, which this host can reach only by 10.0.0.1")


def test_internal_ip_that_is_the_endpoint_is_masqueraded_since_it_has_no_route() -> None:
    far = node("n6", "z", endpoint=at("10.9.0.6"), internal_ip="10.9.0.6/24")
    world = World(cluster(node("n1", "x"), far))
    assert world.is_masqueraded("n1", pod("n1"), "10.9.0.6")
    assert not world.is_masqueraded("n1", pod("n1"), pod("n6"))


@st.composite
def claimed(draw: st.DrawFn) -> State:
    """Sound nodes, and Peers and location IPs that claim all sorts of networks."""
    odd = st.sampled_from(ODD)
    some = st.lists(odd, max_size=3).map(tuple)
    nodes = [
        node(f"n{i}", draw(st.sampled_from("xyz")), allowed_location_ips=draw(some), key=key(draw(keys)))
        for i, keys in enumerate([st.just("n1"), *[st.sampled_from(["n2", "n3"])] * 2], 1)
    ]
    return nodes, [peer(f"p{i}", *draw(some)) for i in range(draw(st.integers(0, 3)))]


@settings(deadline=None, max_examples=150)
@given(claimed(), st.sampled_from(["n1", "n2", "n3"]), st.sampled_from(FLAGS))
def test_any_plan_has_a_network_in_all_of_its_parts_or_in_none(
    state: State, name: str, flags: dict[str, str]
) -> None:
    result = planned(state, name, **flags)
    items = result.items.values()
    for item in items:
        check(item, "10.4.0.0/16")
    routes = {r.dst for r in items if isinstance(r, Route) and not r.table}
    carried = {n for p in items if isinstance(p, PlannedPeer) for n in p.allowed_ips}
    through = {r.dst for r in items if isinstance(r, Route) and r.device == "wireguard"}
    assert through <= carried, "a route never stands without its peer"
    for entry in items:
        if isinstance(entry, SetEntry) and entry.route:
            assert entry.route in routes
            assert canonical_network(entry.network) == entry.network


def test_network_that_the_leader_alone_refuses_is_masqueraded_there_for_its_neighbours() -> None:
    """The leader is connected to what the Peer claims; its neighbour sends that by the leader."""
    state = cluster(*TWO_LOCATIONS[0], peer("office", "172.20.0.0/24"))
    world = World(state)
    eth0 = Link("eth0", 2, 1500, up=True, addresses=("10.0.0.1/24", "203.0.113.1/24", "172.20.0.1/24"))
    world.plans["n1"] = planned(state, "n1", host=HostFacts(key("n1"), links=(eth0,), default_link="eth0"))
    assert "peer office claims 172.20.0.0/24" in world.plans["n1"].conflicts["network/172.20.0.0/24"]
    assert not world.is_masqueraded("n2", pod("n2"), "172.20.0.9")
    assert world.is_masqueraded("n1", pod("n2"), "172.20.0.9")
    assert not world.is_masqueraded("n1", pod("n2"), pod("n3")), "what has a route is not"
    assert not world.is_masqueraded("n1", pod("n3"), "172.20.0.9"), "of other locations nothing is"
