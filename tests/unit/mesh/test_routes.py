from __future__ import annotations

from typing import Any

import pytest

from kilo.mesh.routes import peer_routes, routes
from kilo.model.node import Node, Peer
from kilo.model.plan import Route, Rule
from kilo.model.settings import Settings
from tests.unit.mesh.states import STATES, at, cluster, node, topology

State = tuple[list[Node], list[Peer]]
TWO, PEERS = STATES["two locations"], STATES["with peers"]


def planned(state: State, hostname: str, **flags: Any) -> tuple[set[Route], set[Rule]]:
    found, rules = routes(topology(state, hostname, **flags), Settings(hostname, **flags))
    return set(found), set(rules)


def direct(dst: str, via: str) -> Route:
    return Route(dst, "private", via, onlink=True)


def tunnelled(dst: str, via: str, src: str, table: int = 0) -> Route:
    return Route(dst, "tunnel", via, src, table, onlink=True)


def through(dst: str, via: str, src: str = "10.0.0.1") -> Route:
    return Route(dst, "wireguard", via, src, onlink=True)


REMOTE_OF_X = {
    through("10.2.3.0/24", "10.4.0.2"),
    through("10.0.0.3/32", "10.4.0.2"),
    through("10.2.4.0/24", "10.4.0.2"),
    through("10.0.0.4/32", "10.4.0.2"),
}


def test_a_leader_without_encapsulation() -> None:
    found, rules = planned(TWO, "n1", encapsulate="never")
    assert found == REMOTE_OF_X | {direct("10.2.2.0/24", "10.0.0.2")}
    assert rules == set()


def test_a_leader_that_encapsulates() -> None:
    found, rules = planned(TWO, "n1", encapsulate="always")
    assert found == REMOTE_OF_X | {
        tunnelled("10.2.2.0/24", "10.0.0.2", "10.0.0.1"),
        tunnelled("10.0.0.2/32", "10.0.0.2", "10.0.0.1", 1107),
    }
    assert rules == {
        Rule(1107, src="10.2.1.0/24", dst="10.0.0.2/32"),
        Rule(1107, dst="10.0.0.2/32", iif="wireguard"),
    }


def test_who_follows_goes_through_the_leader() -> None:
    found, rules = planned(TWO, "n2", encapsulate="never")
    remote = ["10.4.0.2/32", "10.2.3.0/24", "10.0.0.3/32", "10.2.4.0/24", "10.0.0.4/32"]
    near = ["10.4.0.1/32", "10.2.1.0/24"]
    assert found == {direct(dst, "10.0.0.1") for dst in remote + near}
    assert rules == set()


def test_who_follows_and_encapsulates_has_no_rule_for_the_mesh() -> None:
    _, rules = planned(TWO, "n2", encapsulate="always")
    assert rules == {Rule(1107, src="10.2.2.0/24", dst="10.0.0.1/32")}


def test_across_subnets_only_foreign_addresses_are_encapsulated() -> None:
    far = node("n3", "x", internal_ip="10.0.9.3/24")
    found, rules = planned(cluster(node("n1", "x"), node("n2", "x"), far), "n1", encapsulate="crosssubnet")
    assert found == {
        direct("10.2.2.0/24", "10.0.0.2"),
        tunnelled("10.2.3.0/24", "10.0.9.3", "10.0.0.1"),
        tunnelled("10.0.9.3/32", "10.0.9.3", "10.0.0.1", 1107),
    }
    assert {rule.dst for rule in rules} == {"10.0.9.3/32"}


def test_without_local_routes_the_own_segment_is_somebody_elses() -> None:
    for encapsulate in ("never", "crosssubnet", "always"):
        assert planned(TWO, "n1", local=False, encapsulate=encapsulate) == (REMOTE_OF_X, set())


def test_behind_cilium_what_came_encapsulated_goes_back_encapsulated() -> None:
    state = cluster(node("n1", "x"), node("n2", "x", cni_compatibility_ip="10.2.2.77/32"))
    found, rules = planned(state, "n1", local=False, compatibility="cilium")
    assert found == {Route("10.0.0.2/32", "tunnel", "10.2.2.77", table=1107, onlink=True)}
    assert rules == {Rule(1107, dst="10.0.0.2/32", iif="wireguard")}


@pytest.mark.parametrize(("compatibility", "gateway"), [("flannel", "10.2.2.0"), ("cilium", "10.2.2.77")])
def test_another_cni_has_its_own_gateways(compatibility: str, gateway: str) -> None:
    state = cluster(node("n1", "x"), node("n2", "x", cni_compatibility_ip="10.2.2.77/32"))
    found, _ = planned(state, "n1", compatibility=compatibility)
    assert {route.via for route in found} == {gateway}


def test_a_private_address_that_is_the_endpoint_stays_outside_the_tunnel() -> None:
    state = cluster(node("n1", "x"), node("n2", "y", endpoint=at("10.0.0.2")))
    found, _ = planned(state, "n1")
    assert found == {through("10.2.2.0/24", "10.4.0.2")}


def test_peers_are_reached_by_the_interface_alone() -> None:
    found, _ = planned(PEERS, "n1")
    peers = ("10.5.0.1/32", "10.6.0.0/24", "10.5.0.2/32")
    assert {Route(dst, "wireguard", src="10.0.0.1") for dst in peers} <= found


def test_without_a_private_address_the_kernel_chooses_the_source() -> None:
    found, _ = planned(STATES["one without private address"], "n5")
    assert {route.src for route in found} == {""}


def test_a_printer_is_reached_through_its_location() -> None:
    state = STATES["with a printer"]
    assert through("192.168.7.9/32", "10.4.0.1", "10.0.0.3") in planned(state, "n3")[0]
    assert not {r for r in planned(state, "n1")[0] | planned(state, "n2")[0] if "192.168.7.9" in r.dst}


def test_the_routes_of_a_peer() -> None:
    found = peer_routes(topology(PEERS), "laptop", ["10.43.0.0/16"])
    assert through("10.43.0.0/16", "10.4.0.1", "") in found
    assert through("10.2.4.0/24", "10.4.0.2", "") in found
    assert Route("10.4.0.2/32", "wireguard") in found
    assert Route("10.6.0.0/24", "wireguard") in found
    assert not [route for route in found if route.dst == "10.5.0.1/32"]
