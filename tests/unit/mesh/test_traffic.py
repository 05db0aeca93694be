"""What the plans of all nodes together do with packets."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.model.node import Node, Peer
from tests.unit.mesh.states import STATES, at, key, node, peer
from tests.unit.mesh.traffic import World

State = tuple[list[Node], list[Peer]]
FLAGS = [
    {"mesh_granularity": granularity, "encapsulate": encapsulate}
    for granularity in ("location", "full")
    for encapsulate in ("never", "crosssubnet", "always")
]


def pod(of: Node) -> str:
    return of.subnet.replace(".0/24", ".7")


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("name", STATES)
def test_every_pod_reaches_every_other(name: str, flags: dict[str, str]) -> None:
    world = World(STATES[name], **flags)
    for a, b in permutations(world.nodes.values(), 2):
        assert world.send(a.name, pod(a), pod(b))[-1] == b.name


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("name", STATES)
def test_every_pod_reaches_every_host_and_back(name: str, flags: dict[str, str]) -> None:
    """But for those whose endpoint is their private address: a tunnel cannot carry itself."""
    world = World(STATES[name], **flags)
    for a, b in permutations(world.nodes.values(), 2):
        host = b.internal_ip.partition("/")[0]
        if host and b.endpoint and b.endpoint.ip != host:
            assert world.send(a.name, pod(a), host)[-1] == b.name
            assert world.send(b.name, host, pod(a), from_pod=False)[-1] == a.name


@pytest.mark.parametrize("granularity", ["location", "full"])
def test_every_pod_reaches_every_peer(granularity: str) -> None:
    world = World(STATES["with peers"], mesh_granularity=granularity)
    for a in world.nodes.values():
        assert world.send(a.name, pod(a), "10.5.0.1")[-1] == "laptop"
        assert world.send(a.name, pod(a), "10.6.0.200")[-1] == "office"


def test_within_a_location_only_the_leader_uses_wireguard() -> None:
    world = World(STATES["two locations"])
    n1, n2, n3, n4 = world.nodes.values()
    assert world.send("n2", pod(n2), pod(n1)) == ["n2", "n1"]
    assert world.send("n2", pod(n2), pod(n4)) == ["n2", "n1", "n3", "n4"]
    assert world.send("n4", pod(n4), pod(n2)) == ["n4", "n3", "n1", "n2"]
    assert world.send("n1", pod(n1), pod(n3)) == ["n1", "n3"]


def test_in_full_granularity_nobody_is_passed() -> None:
    world = World(STATES["two locations"], mesh_granularity="full")
    for a, b in permutations(world.nodes.values(), 2):
        assert world.send(a.name, pod(a), pod(b)) == [a.name, b.name]


def test_a_printer_of_one_location_is_reached_from_the_other() -> None:
    world = World(STATES["with a printer"])
    n3 = world.nodes["n3"]
    route = next(r for r in world.plans["n3"].items.values() if getattr(r, "dst", "") == "192.168.7.9/32")
    assert getattr(route, "device", "") == "wireguard"
    assert world._through_wireguard("n3", pod(n3), "192.168.7.9") == "n1"
    assert "entry/masquerade_to/192.168.7.9/32" in world.plans["n1"].items
    assert "entry/masquerade_to/192.168.7.9/32" not in world.plans["n3"].items


@st.composite
def clusters(draw: st.DrawFn) -> State:
    """Any number of sound nodes: distinct pod CIDRs and addresses, everything else as it comes."""
    nodes = []
    for i in range(1, draw(st.integers(2, 7)) + 1):
        location = draw(st.sampled_from(["x", "y", ""]))
        private = draw(st.sampled_from([f"10.0.{'xy'.find(location) + 1}.{i}/24", ""]))
        public = at(f"203.0.113.{i}")
        near = at(private.partition("/")[0]) if private else public
        nodes.append(
            node(
                f"n{i}",
                location,
                internal_ip=private,
                endpoint=draw(st.sampled_from([public, near])),
                leader=draw(st.booleans()),
                persistent_keepalive=draw(st.sampled_from([0, 10])),
            )
        )
    peers = [peer(f"p{i}", f"10.5.0.{i}/32") for i in range(draw(st.integers(0, 2)))]
    return nodes, peers


@settings(deadline=None, max_examples=60)
@given(clusters(), st.sampled_from(FLAGS))
def test_any_sound_cluster_is_connected(state: State, flags: dict[str, str]) -> None:
    world = World(state, **flags)
    for a, b in permutations(world.nodes.values(), 2):
        assert world.send(a.name, pod(a), pod(b))[-1] == b.name
    for a in world.nodes.values():
        for p in state[1]:
            assert world.send(a.name, pod(a), p.allowed_ips[0].partition("/")[0])[-1] == p.name


def test_a_cloned_key_costs_only_the_clone() -> None:
    """A second node with the key of the first is left out by the others, who still reach the rest."""
    state: State = ([node("n1", "x"), node("n2", "y"), node("n3", "z", key=key("n2"))], [])
    plan = World((state[0][:2], [])).plans["n1"]
    cloned = World(state).plans["n1"]
    assert cloned.items[f"peer/{key('n2')}"] == plan.items[f"peer/{key('n2')}"]
    assert "node n3" in cloned.conflicts[f"key/{key('n2')}"]
