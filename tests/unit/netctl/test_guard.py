"""Rule 7: which routes would move into the tunnel what sets it up."""

from __future__ import annotations

import ipaddress
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.model.node import ApiServer
from kilo.model.plan import PlanItem, PlannedPeer, Route
from kilo.netctl.cover import Cover
from kilo.netctl.detour import BLAME_FIRST, SUSPECT_AFTER, TRY_AGAIN_AFTER, TRY_FOR, Detour
from kilo.netctl.guard import ASK_AGAIN, ASK_EVERY, ASK_FRESH, FRESH, PATIENCE, REFRESH, Guard
from kilo.netctl.wireguard.device import PeerState
from tests.unit.netctl.plans import key, mesh

WALL = 1_700_000_000.0
WIDE = PlannedPeer(key(1), ("198.51.100.0/24", "10.2.1.0/24"), "203.0.113.1", 51820)
SAW = Route("198.51.100.0/24", "wireguard")
PODS = Route("10.2.1.0/24", "wireguard")
OTHER = PlannedPeer(key(2), ("10.2.2.0/24",), "198.51.100.9", 51820)
API = ApiServer(("198.51.100.77", "192.0.2.1"), True)


class Box:
    """A guard, with a plan and a clock."""

    def __init__(self, *items: PlanItem) -> None:
        self.guard = Guard()
        self.now = 1000.0
        self.states: dict[str, PeerState] = {}
        self.plan(*items)

    def plan(self, *items: PlanItem, remove: tuple[str, ...] = ()) -> bool:
        return self.guard.update({item.key: item for item in items}, remove, self.now)

    def answered(self, peer: PlannedPeer, ago: float = 0.0, endpoint: str = "") -> bool:
        """The device says that ``peer`` made a handshake ``ago`` s ago; inf for never."""
        at = 0 if ago == float("inf") else int(self.wall - ago)
        where = (endpoint, 1) if endpoint else (peer.endpoint_ip, peer.endpoint_port)
        self.states[peer.key] = PeerState(frozenset(peer.allowed_ips), where, last_handshake=at)
        return self.guard.observe(self.states, self.now, self.wall)

    @property
    def wall(self) -> float:
        return WALL + self.now

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1)
            self.guard.tick(self.now)

    def reason(self, route: Route = SAW) -> str:
        verdict = self.guard.verdict(route)
        return verdict.reason if verdict else ""

    def keeps(self, route: Route = SAW) -> bool:
        verdict = self.guard.verdict(route)
        assert verdict is not None
        return verdict.keep

    def idle(self) -> bool:
        return not self.guard.watching

    def asked(self) -> list[str]:
        return [peer.key for peer in self.guard.due(self.now, self.wall)]


def test_a_route_over_the_endpoint_of_its_own_peer_is_never_set() -> None:
    own = PlannedPeer(key(1), WIDE.allowed_ips, "198.51.100.7", 51820)
    box = Box(own, SAW, PODS)
    assert "its own peer" in box.reason() and key(1) in box.reason()
    assert not box.keeps()
    box.answered(own)
    assert "its own peer" in box.reason(), "whether or not it answers"
    assert box.reason(PODS) == ""
    assert box.reason(Route(SAW.dst, "private")) == "", "another device carries no tunnel"
    assert box.asked() == []


def test_a_route_over_anothers_endpoint_waits_for_a_handshake() -> None:
    box = Box(WIDE, OTHER, SAW, PODS)
    assert key(2) in box.reason() and "not answered a handshake yet" in box.reason()
    assert box.keeps(), "an earlier run may have set it, and known why"
    assert box.reason(PODS) == ""
    assert box.answered(WIDE)
    assert box.reason() == ""


def test_who_does_not_answer_loses_such_a_route() -> None:
    box = Box(WIDE, OTHER, SAW)
    box.answered(WIDE, ago=float("inf"))
    box.wait(PATIENCE + 1)
    assert "does not answer" in box.reason() and not box.keeps()
    assert box.answered(WIDE)
    assert box.reason() == ""
    box.wait(FRESH + 1)
    assert box.answered(WIDE, ago=FRESH + 1)
    assert box.keeps()
    box.wait(PATIENCE + 1)
    assert not box.keeps()


def test_who_is_tried_is_asked_ever_more_seldom() -> None:
    box = Box(WIDE, OTHER, SAW, PODS)
    asked = [box.asked()]
    assert asked == [[WIDE.key]], "and the one without such routes is not"
    assert box.asked() == []
    box.wait(ASK_EVERY)
    assert box.asked() == [WIDE.key]
    box.wait(PATIENCE)
    assert box.asked() == [WIDE.key]
    box.wait(ASK_AGAIN - 1)
    assert box.asked() == []
    box.answered(WIDE)
    box.wait(REFRESH - 1)
    assert box.asked() == [], "a fresh handshake says enough"
    box.wait(2)
    assert box.asked() == [WIDE.key]
    box.wait(ASK_FRESH - 1)
    assert box.asked() == []


def test_where_packets_go_in_fact_counts_as_well() -> None:
    box = Box(PlannedPeer(key(1), WIDE.allowed_ips), SAW)
    assert not box.answered(WIDE)
    assert box.answered(WIDE, endpoint="198.51.100.8")
    assert "its own peer" in box.reason()
    assert not box.answered(WIDE, endpoint="198.51.100.9")
    box.states.clear()
    assert box.guard.observe(box.states, box.now, box.wall)
    assert box.reason() == ""


def test_what_goes_takes_its_reason_along() -> None:
    box = Box(WIDE, OTHER, SAW)
    assert not box.idle()
    assert box.plan(remove=(OTHER.key,))
    assert box.reason() == "" and box.idle()
    box.plan(OTHER)
    assert box.reason()
    assert box.plan(remove=(WIDE.key,))
    assert "no peer has it" in box.reason()
    box.plan(remove=(SAW.key,))
    assert box.reason() == "" and box.idle()
    assert not box.plan(remove=(SAW.key,))


def test_the_way_to_the_api_server_waits_for_a_handshake_too() -> None:
    box = Box(WIDE, SAW, API)
    assert "the API server" in box.reason()
    box.answered(WIDE)
    assert box.reason() == ""
    box.plan(ApiServer(("192.0.2.1",), True))
    assert box.reason() == "" and box.idle()
    box.plan(API)
    box.plan(remove=(API.key,))
    assert box.reason() == "" and box.idle()


def test_a_tunnel_that_swallows_what_is_sent_to_the_api_server_is_avoided() -> None:
    box = Box(WIDE, SAW, PODS, API)
    box.answered(WIDE)
    box.plan(ApiServer(API.addresses, False))
    box.wait(SUSPECT_AFTER - 1)
    assert box.reason() == ""
    box.wait(2)
    assert "trying without" in box.reason() and not box.keeps()
    assert box.reason(PODS) == "", "only what is over the API server"
    box.plan(API)
    box.answered(WIDE)
    box.wait(BLAME_FIRST / 2)
    box.answered(WIDE)
    assert "was lost through it" in box.reason()
    box.wait(BLAME_FIRST / 2 + 1)
    box.answered(WIDE)
    assert box.reason() == "", "and then it is given another chance"


def test_an_outage_of_the_api_server_itself_takes_the_route_for_moments_only() -> None:
    detour = Detour()
    away = 0
    detour.heard(False, 0)
    for now in range(3600):
        detour.tick(now)
        away += detour.avoiding
    assert away / 3600 < 1.1 * TRY_FOR / (TRY_FOR + TRY_AGAIN_AFTER)
    detour.heard(True, 3600)
    if detour.avoiding:
        detour.tick(3600 + BLAME_FIRST)
    assert not detour.avoiding and not detour.active


def test_who_is_to_blame_again_is_avoided_for_longer() -> None:
    detour, now, spans = Detour(), 0.0, []
    for _ in range(5):
        detour.heard(False, now)
        now += max(SUSPECT_AFTER, TRY_AGAIN_AFTER)
        assert detour.tick(now)
        detour.heard(True, now)
        start, ended = now, False
        while not ended:
            now += 10
            ended = detour.tick(now)
        spans.append(now - start)
    assert spans == [600, 1200, 2400, 3600, 3600]


def test_a_thousand_nodes_cost_little() -> None:
    plan = mesh(1000)
    states = {
        p.key: PeerState(frozenset(p.allowed_ips), (p.endpoint_ip, 51820))
        for p in plan.values()
        if isinstance(p, PlannedPeer)
    }
    guard = Guard()
    guard.update(plan, (), 0)
    guard.observe(states, 0, WALL)
    assert not guard.watching
    started = time.process_time()
    for _ in range(10):
        assert not guard.observe(states, 1, WALL)
    assert (time.process_time() - started) / 10 < 0.01


networks = st.builds(
    lambda bits, length: str(ipaddress.ip_network((bits >> (32 - length) << (32 - length), length))),
    st.integers(0x0A000000, 0x0A0000FF),
    st.integers(24, 32),
)
addresses = st.builds(lambda n: str(ipaddress.ip_address(n)), st.integers(0x0A000000, 0x0A0000FF))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("network"), st.sampled_from("abc"), st.none() | networks),
        st.tuples(st.just("addresses"), st.sampled_from("xyz"), st.sets(addresses, max_size=3)),
    ),
    max_size=20,
)


@settings(max_examples=300)
@given(steps)
def test_cover_is_what_a_search_of_everything_finds(steps: list[tuple[str, str, object]]) -> None:
    cover = Cover()
    nets: dict[str, str] = {}
    needed: dict[str, set[str]] = {}

    def expected() -> dict[str, dict[str, set[str]]]:
        found: dict[str, dict[str, set[str]]] = {}
        for network in nets.values():
            for owner, ips in needed.items():
                for ip in ips:
                    if ipaddress.ip_address(ip) in ipaddress.ip_network(network):
                        found.setdefault(network, {}).setdefault(owner, set()).add(ip)
        return found

    before = expected()
    for what, name, value in steps:
        if what == "network" and value is None:
            told = cover.drop_network(name)
            nets.pop(name, None)
        elif what == "network":
            told = cover.add_network(name, str(value))
            nets[name] = str(value)
        else:
            assert isinstance(value, set)
            told = cover.set_addresses(name, value)
            needed[name] = value
        after = expected()
        assert cover.delicate == after
        assert told >= {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
        before = after
