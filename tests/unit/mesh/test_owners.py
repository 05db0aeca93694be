"""Who keeps a key or a network that somebody else claims, too: who had it before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import msgspec
import pytest

from kilo.mesh.owners import MOST_PAST, NOTHING, Known, Memory, claims_of
from kilo.mesh.planner import Planned, plan
from kilo.model.host import WireGuardPeerState
from kilo.model.node import Node, Peer
from kilo.model.plan import PlannedPeer, Route, route_key
from tests.unit.mesh.states import at, cluster, inputs, key, node, peer

KEY = key("n5")
HEALTHY = node("n5", "m")
COPY = node("n1", "a", key=KEY)
HEALTHY_HAD_IT = Known(owners={KEY: ("node n5",)})
OLD, NEW = 1_600_000_000, 1_700_000_000


def seen_from_n9(*members: Node | Peer, known: Known = NOTHING) -> Planned:
    """The plan of a host of another location, which remembers what is ``known``."""
    return plan(replace(inputs(cluster(node("n9", "z"), *members), "n9"), known=known))


def has_the_key(result: Planned) -> str:
    """Who is the WireGuard peer with KEY, by the networks that it gets."""
    item = result.items[f"peer/{KEY}"]
    assert isinstance(item, PlannedPeer)
    (who,) = [name for name in ("n1", "n5") if f"10.2.{name[1:]}.0/24" in item.allowed_ips]
    return who


def aged(healthy: int, copy: int) -> tuple[Node, Node]:
    """The two, made at those times."""
    return msgspec.structs.replace(HEALTHY, created=healthy), msgspec.structs.replace(COPY, created=copy)


@pytest.mark.parametrize("ages", [(0, 0), (OLD, NEW), (NEW, OLD)])
def test_who_had_a_key_keeps_it(ages: tuple[int, int]) -> None:
    for members in permutations(aged(*ages)):
        result = seen_from_n9(*members, known=HEALTHY_HAD_IT)
        assert has_the_key(result) == "n5"
        assert result.owners == {KEY: "node n5"}
        assert result.conflicts == {
            f"key/{KEY}": f"node n5 and node n1 have the same public key {KEY};"
            " the first counts (annotation kilo.squat.ai/key)"
        }


def test_the_copy_costs_nobody_anything_but_itself() -> None:
    before = seen_from_n9(HEALTHY).items
    after = seen_from_n9(HEALTHY, COPY, known=HEALTHY_HAD_IT).items
    assert after[f"peer/{KEY}"].allowed_ips[:2] == before[f"peer/{KEY}"].allowed_ips[:2]  # type: ignore[union-attr]
    peers = [k for k, item in after.items() if isinstance(item, PlannedPeer)]
    assert peers == [f"peer/{KEY}"]


def test_with_no_memory_the_kernel_tells_by_the_endpoint() -> None:
    for name in ("n1", "n5"):
        state = WireGuardPeerState(KEY, f"203.0.113.{name[1:]}", 51820)
        routes = {route_key("10.2.1.0/24"), route_key("10.2.5.0/24")}
        known = Known(wireguard={KEY: state}, routed=routes)
        assert has_the_key(seen_from_n9(*aged(OLD, NEW), known=known)) == name
        assert has_the_key(seen_from_n9(*aged(NEW, OLD), known=known)) == name


def test_of_a_peer_that_has_roamed_the_kernel_tells_by_the_routes() -> None:
    for name in ("n1", "n5"):
        state = WireGuardPeerState(KEY, "198.51.100.77", 4711, last_handshake=1)
        known = Known(wireguard={KEY: state}, routed={route_key(f"10.2.{name[1:]}.0/24")})
        assert has_the_key(seen_from_n9(*aged(OLD, NEW), known=known)) == name
        assert has_the_key(seen_from_n9(*aged(NEW, OLD), known=known)) == name


def test_with_nothing_known_it_is_the_older_node_on_every_host() -> None:
    assert has_the_key(seen_from_n9(*aged(OLD, NEW))) == "n5"
    assert has_the_key(seen_from_n9(*aged(NEW, OLD))) == "n1"
    assert has_the_key(seen_from_n9(*aged(OLD, OLD))) == "n1"
    assert has_the_key(seen_from_n9(*aged(OLD, 0))) == "n5", "who does not say counts as the newest"


@pytest.mark.parametrize("location", ["z", "a"])
def test_a_host_is_itself_whatever_it_remembers(location: str) -> None:
    ours = key("n9")
    copy = node("n1", location, key=ours, created=OLD)
    result = seen_from_n9(copy, known=Known(owners={ours: ("node n1",)}))
    assert f"peer/{ours}" not in result.items
    assert result.owners == {ours: "node n9"}
    assert result.conflicts[f"key/{ours}"].startswith("node n9 and node n1 have the same public key")


def test_who_does_not_lead_now_owns_its_key_all_the_same() -> None:
    """Its segment has another key; once it leads, the copy must not have taken its place."""
    leader = node("n4", "m")
    result = seen_from_n9(leader, HEALTHY, COPY, known=HEALTHY_HAD_IT)
    assert has_the_key(result) == "n1", "nobody else is a WireGuard peer with it"
    assert result.owners == {KEY: "node n5"}


def test_a_node_does_not_take_the_key_of_a_peer() -> None:
    laptop = msgspec.structs.replace(
        peer("laptop", "10.2.5.0/24", endpoint=at("203.0.113.5")), public_key=KEY
    )
    for known in (Known(owners={KEY: ("peer laptop",)}), Known(routed={route_key("10.2.5.0/24")})):
        result = seen_from_n9(COPY, laptop, known=known)
        assert has_the_key(result) == "n5"
        assert "annotation kilo.squat.ai/key and spec.publicKey" in result.conflicts[f"key/{KEY}"]
    older = msgspec.structs.replace(laptop, created=OLD)
    assert has_the_key(seen_from_n9(aged(OLD, NEW)[1], older)) == "n5"


def users(result: Planned, network: str) -> list[str]:
    return [k for k, i in result.items.items() if isinstance(i, PlannedPeer) and network in i.allowed_ips]


@pytest.mark.parametrize("network", ["10.0.0.5/32", "10.2.5.0/24"])
def test_who_had_a_network_keeps_it(network: str) -> None:
    taken = {"internal_ip": "10.0.0.5/24"} if network.endswith("/32") else {"subnet": network}
    for members in permutations((node("n5", "m", created=NEW), node("n1", "a", created=OLD, **taken))):
        result = seen_from_n9(*members, known=Known(owners={network: ("node n5",)}))
        assert users(result, network) == [f"peer/{KEY}"]
        route = result.items[route_key(network)]
        assert isinstance(route, Route)
        assert route.via == "10.4.0.2", "the WireGuard address of n5's segment"
        told = f"node n5 and node n1 claim {network}; the first counts"
        assert result.conflicts == {f"network/{network}": told}
        assert result.owners == {network: "node n5"}
        assert users(seen_from_n9(*members), network) == [f"peer/{key('n1')}"], "the older one"


@pytest.mark.parametrize(
    ("healthy", "copy", "known", "first"),
    [
        (NEW, OLD, Known(owners={"10.2.5.0/24": ("node n5",)}), "n5"),
        (OLD, NEW, Known(owners={"10.2.5.0/24": ("node n1",)}), "n1"),
        (OLD, NEW, NOTHING, "n5"),
        (NEW, OLD, NOTHING, "n1"),
        (OLD, OLD, NOTHING, "n1"),
    ],
)
def test_of_two_neighbours_too(healthy: int, copy: int, known: Known, first: str) -> None:
    neighbour = node("n5", "z", created=healthy)
    for members in permutations((neighbour, node("n1", "z", created=copy, subnet="10.2.5.0/24"))):
        result = seen_from_n9(*members, known=known)
        route = result.items[route_key("10.2.5.0/24")]
        assert isinstance(route, Route) and route.via == f"10.0.0.{first[1:]}"
        assert result.owners == {"10.2.5.0/24": f"node {first}"}
        kept = {k for k in seen_from_n9(neighbour).items if k.startswith(("route/1107/", "rule/"))}
        assert kept <= result.items.keys(), "to the host itself"


def in_the_kernel(**networks: str) -> Known:
    """A device whose peers, of these names, have one network each; nothing is remembered."""
    return Known(
        wireguard={key(n): WireGuardPeerState(key(n), allowed_ips=(a,)) for n, a in networks.items()}
    )


@pytest.mark.parametrize("network", ["10.0.0.5/32", "10.2.5.0/24"])
@pytest.mark.parametrize("leader", ["n5", "n4"])
def test_with_no_memory_the_kernel_tells_whose_a_network_is(network: str, leader: str) -> None:
    """It is under the key of whoever led the segment when the agent ended."""
    taken = {"internal_ip": "10.0.0.5/24"} if network.endswith("/32") else {"subnet": network}
    healthy, copy = node("n5", "m", created=NEW), node("n1", "a", created=OLD, **taken)
    for members in permutations((healthy, node("n4", "m", created=NEW), copy)):
        kept = seen_from_n9(*members, known=in_the_kernel(**{leader: network}))
        assert users(kept, network) == [f"peer/{key('n4')}"], "of the two in m, n4 leads now"
        assert kept.owners == {network: "node n5"}
        copied = seen_from_n9(*members, known=in_the_kernel(n1=network))
        assert users(copied, network) == [f"peer/{key('n1')}"]


def test_what_is_remembered_of_a_network_comes_before_what_the_kernel_has() -> None:
    copy = node("n1", "a", created=OLD, subnet="10.2.5.0/24")
    known = replace(in_the_kernel(n1="10.2.5.0/24"), owners={"10.2.5.0/24": ("node n5",)})
    assert users(seen_from_n9(HEALTHY, copy, known=known), "10.2.5.0/24") == [f"peer/{KEY}"]


def test_who_copies_the_key_too_is_not_who_the_kernel_has_under_it() -> None:
    copy = node("n1", "a", created=OLD, key=KEY, subnet="10.2.5.0/24")
    healthy = msgspec.structs.replace(HEALTHY, created=NEW)
    state = WireGuardPeerState(KEY, "203.0.113.5", 51820, allowed_ips=("10.2.5.0/24",))
    for members in permutations((healthy, copy)):
        result = seen_from_n9(*members, known=Known(wireguard={KEY: state}))
        assert result.owners == {KEY: "node n5", "10.2.5.0/24": "node n5"}
        item = result.items[f"peer/{KEY}"]
        assert isinstance(item, PlannedPeer)
        assert "10.2.5.0/24" in item.allowed_ips and item.endpoint_ip == "203.0.113.5"


def test_of_a_network_of_a_peer_the_kernel_tells_too() -> None:
    taken, laptop = node("n1", "a", internal_ip="10.5.0.1/32", created=OLD), peer("laptop", "10.5.0.1/32")
    for name in ("n1", "laptop"):
        result = seen_from_n9(taken, laptop, known=in_the_kernel(**{name: "10.5.0.1/32"}))
        assert users(result, "10.5.0.1/32") == [f"peer/{key(name)}"]


def test_a_node_does_not_take_a_network_of_a_peer() -> None:
    taken = node("n1", "a", internal_ip="10.5.0.1/32")
    laptop = peer("laptop", "10.5.0.1/32")
    kept = seen_from_n9(taken, laptop, known=Known(owners={"10.5.0.1/32": ("peer laptop",)}))
    assert users(kept, "10.5.0.1/32") == [f"peer/{key('laptop')}"]
    assert users(seen_from_n9(taken, laptop), "10.5.0.1/32") == [f"peer/{key('n1')}"]


def test_a_peer_does_not_keep_what_is_a_nodes_pod_cidr_now() -> None:
    """The cluster gives those out, not the node; and a Peer gets nothing in one, so nobody would have it."""
    known = Known(owners={"10.2.5.0/24": ("peer laptop", "node n5")})
    result = seen_from_n9(HEALTHY, peer("laptop", "10.2.5.0/24"), known=known)
    assert users(result, "10.2.5.0/24") == [f"peer/{KEY}"]
    assert result.conflicts["network/10.2.5.0/24"].startswith("node n5 and peer laptop claim")


def test_nobody_takes_a_wireguard_address_that_a_segment_is_given() -> None:
    thief = node("n1", "a", internal_ip="10.4.0.2/32", created=OLD)
    result = seen_from_n9(thief, HEALTHY, known=Known(owners={"10.4.0.2/32": ("node n1",)}))
    assert users(result, "10.4.0.2/32") == [f"peer/{KEY}"]


@pytest.mark.parametrize(
    ("member", "claims"),
    [
        (HEALTHY, [KEY, "10.2.5.0/24", "10.0.0.5/32"]),
        (node("n5", internal_ip=""), [KEY, "10.2.5.0/24"]),
        (peer("p", "10.5.0.1/24", "fd00::1/128"), [key("p"), "10.5.0.0/24", "fd00::1/128"]),
    ],
)
def test_what_a_member_claims_alone(member: Node | Peer, claims: Sequence[str]) -> None:
    assert list(claims_of(member)) == claims


def test_who_is_away_keeps_his_place_and_who_came_next_has_the_next() -> None:
    memory = Memory()
    memory.remember([HEALTHY], {})
    memory.remember([COPY], {})
    third = node("n2", "b", key=KEY, created=OLD)
    assert memory.owners[KEY] == ("node n5", "node n1")
    known = Known(memory.owners)
    assert has_the_key(seen_from_n9(HEALTHY, COPY, third, known=known)) == "n5"
    assert has_the_key(seen_from_n9(COPY, third, known=known)) == "n1"


@pytest.mark.parametrize("members", [(HEALTHY, COPY), (COPY, HEALTHY)])
def test_of_two_that_come_at_once_who_has_it_is_remembered_first(members: Sequence[Node]) -> None:
    memory = Memory()
    memory.remember(members, {KEY: "node n5"})
    assert memory.owners[KEY] == ("node n5", "node n1")


def test_what_is_remembered_of_the_past_is_bounded() -> None:
    memory = Memory()
    memory.remember([HEALTHY], {})
    for number in range(2 * MOST_PAST):
        memory.remember([peer(f"p{number}", f"10.5.{number % 256}.{number // 256}/32")], {})
        memory.forget([HEALTHY])
    assert len(memory.owners) <= MOST_PAST + 100
    assert memory.owners[KEY] == ("node n5",)
