"""The roster, fed with objects in every order; the tables are plain dictionaries."""

from __future__ import annotations

import base64
import json
from typing import Any, TypeVar

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kilo.model.node import Endpoint, Node, Peer, Problem
from kilo.watcher.objects import MalformedObject, NodeObject, PeerObject, decode_node, decode_peer
from kilo.watcher.roster import ANNOUNCEMENT_LOST, IN_DOUBT, LOCAL, NODE, NOT_ANNOUNCED, PEER, Roster

V = TypeVar("V")
WALL = 1_700_000_000.0
LABEL = "topology.kubernetes.io/region"


def key(number: int) -> str:
    return base64.b64encode(number.to_bytes(32, "big")).decode()


class DictTable(dict[str, V]):
    """Counts what a publisher would have to send."""

    changes = 0

    def put(self, name: str, value: V) -> None:
        if self.get(name) != value:
            self.changes += 1
            self[name] = value

    def remove(self, name: str) -> None:
        if self.pop(name, None) is not None:
            self.changes += 1


class DictNames:
    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.wanted: set[str] = set()

    def address(self, name: str) -> str:
        self.wanted.add(name)
        return self.addresses.get(name, "")

    def keep(self, names: set[str]) -> None:
        self.wanted = set(names)


class World:
    """A roster and what it has written."""

    def __init__(self, own: str = "own") -> None:
        self.members: DictTable[Node | Peer] = DictTable()
        self.problems: DictTable[Problem] = DictTable()
        self.names = DictNames()
        self.told: list[tuple[str, bool]] = []
        self.roster = Roster(own, LABEL, (self.members, self.problems), self.names, self._tell)
        self.roster.liveness.contact(0)
        self.now = 0.0

    def _tell(self, problem: Problem, ended: bool) -> None:
        self.told.append((f"{problem.kind}/{problem.name}/{problem.field}", ended))

    def node(self, name: str = "n1", **changes: Any) -> bool:
        return self.roster.set_node(node(name, **changes), self.now, WALL + self.now)

    def peer(self, name: str = "p", **spec: Any) -> None:
        self.roster.set_peer(peer(name, **spec), WALL + self.now)

    def pass_time(self, seconds: float) -> None:
        """In which the API speaks."""
        end = self.now + seconds
        while self.now < end:
            self.now += 5
            self.roster.liveness.contact(self.now)
            self.roster.judge(WALL + self.now)


def node(
    name: str, pod_cidr: str = "10.2.0.0/24", labels: dict[str, str] | None = None, **annotations: str | None
) -> NodeObject:
    """A node that takes part, with the given annotations (``_`` for ``-``) instead; None leaves one out."""
    values: dict[str, str | None] = {
        "endpoint": "203.0.113.1:51820",
        "key": key(1),
        "last-seen": str(int(WALL)),
        **{k.replace("_", "-"): v for k, v in annotations.items()},
    }
    ours = {f"kilo.squat.ai/{k}": v for k, v in values.items() if v is not None}
    metadata = {"name": name, "labels": labels or {}, "annotations": {**ours, "other/thing": "x"}}
    return decode_node(json.dumps({"metadata": metadata, "spec": {"podCIDR": pod_cidr}}).encode())


def peer(name: str, **spec: Any) -> PeerObject:
    spec = {"publicKey": key(9), "allowedIPs": ["10.5.0.1/32"], **spec}
    return decode_peer(json.dumps({"metadata": {"name": name}, "spec": spec}).encode())


def test_a_node_that_is_complete_takes_part() -> None:
    world = World()
    assert world.node(labels={LABEL: "eu"})
    member = world.members["node/n1"]
    assert isinstance(member, Node)
    assert (member.location, member.subnet) == ("eu", "10.2.0.0/24")
    assert member.endpoint == Endpoint("203.0.113.1", 51820, "203.0.113.1")
    assert not world.problems
    assert world.roster.counts == {"nodes": 1, "ready_nodes": 1, "peers": 0, "ready_peers": 0}


def test_a_node_that_was_made_anew_says_so() -> None:
    """Deleted and made again between two looks, it is the same to the last annotation."""
    world = World()
    for second in (1, 2):
        made = node("n1")
        metadata = msgspec.structs.replace(made.metadata, creation_timestamp=f"2026-01-01T00:00:0{second}Z")
        world.roster.set_node(msgspec.structs.replace(made, metadata=metadata), 0, WALL)
        member = world.members["node/n1"]
        assert isinstance(member, Node)
        assert member.created == 1767225600 + second


def test_what_does_not_count_changes_nothing() -> None:
    world = World()
    world.node()
    before = world.members.changes
    assert not world.node()
    assert not world.node(labels={"some/label": "x"})
    assert not world.node(last_seen=str(int(WALL) + 30)), "a check-in"
    assert world.members.changes == before


def test_what_counts_changes_the_member() -> None:
    for change in (
        {"pod_cidr": "10.2.9.0/24"},
        {"labels": {LABEL: "us"}},
        {"location": "us"},
        {"leader": ""},
        {"endpoint": "203.0.113.2:51820"},
        {"wireguard_ip": "10.4.0.1/16"},
    ):
        world = World()
        world.node()
        before = world.members["node/n1"]
        assert world.node(**change)
        assert world.members["node/n1"] != before, change


def test_who_takes_no_part_is_named_with_the_field_and_since_when() -> None:
    for field, change in (
        ("key", {"key": None}),
        ("key", {"key": "garbage"}),
        ("endpoint", {"endpoint": "nowhere"}),
        ("spec.podCIDR", {"pod_cidr": ""}),
        ("last-seen", {"last_seen": None}),
        ("last-seen", {"last_seen": "yesterday"}),
    ):
        world = World()
        world.node(**change)
        assert not world.members
        problem = world.problems[f"node/n1/{field}"]
        assert (problem.kind, problem.name, problem.field, problem.since) == ("node", "n1", field, int(WALL))
        assert problem.reason
        world.now = 10
        world.node(**change)
        assert world.problems[f"node/n1/{field}"].since == int(WALL)
        assert world.told == [(f"node/n1/{field}", False)], "told once"
        world.node(last_seen=str(int(WALL) + 7))
        assert "node/n1" in world.members
        assert not world.problems
        assert world.told[-1] == (f"node/n1/{field}", True)


def test_a_malformed_field_that_is_not_needed_costs_only_itself() -> None:
    world = World()
    world.node(persistent_keepalive="often", discovered_endpoints="{", allowed_location_ips="10.0.0.0/8,x")
    assert "node/n1" in world.members
    assert set(world.problems) == {
        "node/n1/persistent-keepalive",
        "node/n1/discovered-endpoints",
        "node/n1/allowed-location-ips",
    }


def test_a_silent_node_leaves_and_comes_back() -> None:
    world = World()
    world.node()
    world.node(last_seen=str(int(WALL) + 30))
    world.pass_time(70)
    assert not world.members
    assert set(world.problems) == {"node/n1/last-seen"}
    assert world.node(last_seen=str(int(WALL) + 1))
    assert "node/n1" in world.members
    assert not world.problems


def test_a_node_in_doubt_is_a_member_that_says_so_until_it_has_had_its_time() -> None:
    world = World()
    world.node(last_seen=str(int(WALL) - 3600))
    doubtful = world.members["node/n1"]
    assert isinstance(doubtful, Node) and doubtful.doubtful
    assert world.problems["node/n1/last-seen"].reason == IN_DOUBT
    assert world.problems["node/n1/last-seen"].since == int(WALL) - 3600, "shown as the age"
    world.pass_time(70)
    assert not world.members
    dead = world.problems["node/n1/last-seen"]
    assert dead.reason == "the node has not checked in since 2023-11-14T21:13:20Z"
    assert dead.since == int(WALL) - 3600
    told = list(world.told)
    world.pass_time(60)
    assert world.told == told and world.problems["node/n1/last-seen"] == dead, (
        "the age grows, the text does not"
    )
    world.node(last_seen=str(int(WALL) - 3500))
    sure = world.members["node/n1"]
    assert isinstance(sure, Node) and not sure.doubtful
    assert not world.problems


def test_age_of_a_check_in_is_by_the_clock_of_this_host() -> None:
    """That of the node may be wrong."""
    world = World()
    world.node(last_seen="1000000000")
    world.now += 30
    world.node(last_seen=str(int(WALL) + 86400))
    world.pass_time(90)
    assert world.problems["node/n1/last-seen"].since == WALL + 30
    world.node("n2", last_seen=None)
    assert "does an agent run there?" in world.problems["node/n2/last-seen"].reason
    assert world.problems["node/n2/last-seen"].since == WALL + world.now


def test_our_own_node_is_there_in_whatever_state_while_it_exists() -> None:
    world = World(own="n1")
    world.node(key=None, endpoint=None, last_seen=None, location="eu")
    assert set(world.members) == {LOCAL}
    local = world.members[LOCAL]
    assert isinstance(local, Node)
    assert local.location == "eu"
    world.node()
    assert set(world.members) == {LOCAL, "node/n1"}
    world.roster.remove(NODE, "n1")
    assert not world.members
    assert not world.problems


def test_an_object_that_does_not_decode_takes_no_part_until_it_does() -> None:
    world = World()
    world.node()
    world.peer()
    for kind in (NODE, PEER):
        name = "n1" if kind == NODE else "p"
        world.roster.refuse(kind, MalformedObject(kind, name, "spec.x", "expected a string"), WALL)
        assert f"{kind}/{name}" not in world.members
        assert world.problems[f"{kind}/{name}/spec.x"].reason == "expected a string"
    assert world.roster.gone(NODE, ()) == ["n1"]
    world.node()
    world.peer()
    assert set(world.members) == {"node/n1", "peer/p"}
    assert not world.problems


def test_peers() -> None:
    world = World()
    world.peer(endpoint={"dnsOrIP": {"ip": "203.0.113.7"}, "port": 1}, persistentKeepalive=10)
    world.peer("bad", publicKey="x")
    world.peer("empty", allowedIPs=[])
    assert set(world.members) == {"peer/p"}
    assert set(world.problems) == {"peer/bad/spec.publicKey", "peer/empty/spec.allowedIPs"}
    assert world.roster.counts["peers"] == 3
    assert world.roster.gone(PEER, ["p"]) == ["bad", "empty"]
    for name in ("bad", "empty", "p"):
        world.roster.remove(PEER, name)
    assert not world.members
    assert not world.problems


def test_a_name_that_does_not_resolve_costs_only_the_address() -> None:
    world = World()
    world.node(endpoint="vpn.example:51820")
    world.peer(endpoint={"dnsOrIP": {"dns": "vpn.example"}, "port": 1})
    for member in world.members.values():
        assert member.endpoint is not None
        assert (member.endpoint.host, member.endpoint.ip) == ("vpn.example", "")
    assert not world.problems, "it may still come"
    world.names.failures["vpn.example"] = "no such name"
    world.roster.resolved("vpn.example", WALL)
    assert set(world.members) == {"node/n1", "peer/p"}
    assert set(world.problems) == {"node/n1/endpoint", "peer/p/spec.endpoint"}
    del world.names.failures["vpn.example"]
    world.names.addresses["vpn.example"] = "203.0.113.7"
    world.roster.resolved("vpn.example", WALL)
    assert not world.problems
    assert {m.endpoint.ip for m in world.members.values() if m.endpoint} == {"203.0.113.7"}


def test_names_are_forgotten_with_the_last_endpoint_that_has_them() -> None:
    world = World(own="own")
    world.node(endpoint="a.example:1")
    world.node("own", endpoint="own.example:1", key=None)
    world.peer(endpoint={"dnsOrIP": {"dns": "a.example"}, "port": 1})
    world.roster.forget_names()
    assert world.names.wanted == {"a.example", "own.example"}
    world.node(endpoint="203.0.113.1:1")
    world.roster.forget_names()
    assert "a.example" in world.names.wanted
    world.roster.remove(PEER, "p")
    world.roster.forget_names()
    assert world.names.wanted == {"own.example"}


STATES: list[dict[str, Any] | None] = [
    None,
    {},
    {"key": None},
    {"endpoint": "vpn.example:1"},
    {"endpoint": "x", "persistent_keepalive": "y"},
    {"pod_cidr": "10.9.0.0/24", "leader": ""},
    {"garbage": "yes"},
]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "own"]), st.sampled_from(range(len(STATES))))))
def test_only_the_last_state_of_each_object_counts(history: list[tuple[str, int]]) -> None:
    def play(events: list[tuple[str, int]]) -> World:
        world = World()
        for name, number in events:
            state = STATES[number]
            if state is None:
                world.roster.remove(NODE, name)
            elif "garbage" in state:
                world.roster.refuse(NODE, MalformedObject(NODE, name, "spec", "is garbage"), WALL)
            else:
                world.node(name, **state)
        return world

    last = {name: (name, number) for name, number in history}
    one, other = play(history), play(list(last.values()))
    if last.get("own", ("own", 0))[1] == len(STATES) - 1:  # of garbage, what was known before stays
        one.members.pop(LOCAL, None)
    assert dict(one.members) == dict(other.members)
    for world in (one, other):  # whether the own node has been announced before decides what is said of it
        world.problems.pop("node/own/key", None)
    assert dict(one.problems) == dict(other.problems)
    opened = {name for name, ended in one.told if not ended}
    assert opened >= set(one.problems)


UNANNOUNCED: dict[str, Any] = {"endpoint": None, "key": None, "last_seen": None}


def test_own_node_that_is_not_announced_yet_is_no_problem() -> None:
    world = World(own="n1")
    world.node("n1", **UNANNOUNCED)
    world.pass_time(55)
    assert not world.problems and not world.told
    assert "node/n1" not in world.members and isinstance(world.members["local"], Node)
    world.now += 2
    world.node("n1", last_seen=str(int(WALL + world.now)))
    world.pass_time(30)
    assert not world.told and "node/n1" in world.members


def test_own_node_that_an_earlier_run_announced_in_part_is_no_problem() -> None:
    world = World(own="n1")
    world.node("n1", last_seen=None)
    world.pass_time(30)
    assert not world.told


def test_own_node_that_is_never_announced_is_a_problem_after_its_time() -> None:
    world = World(own="n1")
    world.node("n1", **UNANNOUNCED)
    world.pass_time(65)
    assert world.problems["node/n1/endpoint"].reason == NOT_ANNOUNCED
    world.pass_time(60)
    assert world.told == [("node/n1/endpoint", False)], "once"
    world.node("n1", last_seen=str(int(WALL + world.now)))
    assert not world.problems


def test_own_node_whose_announcement_was_removed_is_a_problem_at_once() -> None:
    world = World(own="n1")
    world.node("n1")
    for name, changes in (("endpoint", {"endpoint": None}), ("key", {"key": None}), ("last-seen", {})):
        world.node("n1", **({"last_seen": None} if name == "last-seen" else changes))
        assert {p.field: p.reason for p in world.problems.values()} == {name: ANNOUNCEMENT_LOST}
        world.node("n1")
        assert not world.problems


def test_own_node_that_is_made_anew_has_its_time_again() -> None:
    world = World(own="n1")
    world.node("n1")
    world.roster.remove(NODE, "n1")
    world.node("n1", **UNANNOUNCED)
    assert not world.problems


def test_own_node_with_a_malformed_field_or_without_pod_cidr_is_a_problem_at_once() -> None:
    world = World(own="n1")
    world.node("n1", key="x")
    assert "node/n1/key" in world.problems
    world.node("n1", pod_cidr="")
    assert set(world.problems) == {"node/n1/spec.podCIDR"}


def test_other_node_that_is_not_announced_is_a_problem_at_once() -> None:
    world = World(own="n1")
    world.node("n2", **UNANNOUNCED)
    assert "does an agent run there?" in world.problems["node/n2/endpoint"].reason
