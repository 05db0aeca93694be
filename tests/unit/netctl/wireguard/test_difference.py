"""What is changed of peers, on a device that is played here, whatever the order of plans."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.model.keys import ZERO, PresharedKey
from kilo.model.plan import PlanItem, PlannedPeer, Route, route_key
from kilo.netctl.key import PrivateKey
from kilo.netctl.wireguard.device import DeviceState, PeerChange, PeerState
from kilo.netctl.wireguard.difference import SESSION, Claims, endpoint_change
from kilo.netctl.wireguard.peers import Peers
from tests.unit.netctl.plans import key

NAMES = [key(n) for n in range(4)]
NETWORKS = ["10.2.1.0/24", "10.2.2.0/24", "10.4.0.1/32", "fd00::/64"]
NOW = 1_000_000.0


class FakeDevice:
    """A device that does what WireGuard does, and keeps what it was told."""

    kind = "userspace"

    def __init__(self) -> None:
        self.peers: dict[str, PeerState] = {}
        self.told: list[PeerChange] = []
        self.homeless: set[str] = set()
        """Allowed IPs that were on no peer between two messages."""

    def read(self) -> DeviceState:
        return DeviceState(None, 51820, dict(self.peers))

    def configure(self, private_key: PrivateKey | None, listen_port: int | None) -> None:
        """Not asked of this one."""

    def close(self) -> None:
        """Nothing to let go of."""

    def change(self, changes: Sequence[PeerChange]) -> list[str]:
        for change in changes:
            before = self.owned()
            self.told.append(change)
            self._one(change)
            self.homeless |= before - self.owned()
        return [""] * len(changes)

    def owned(self) -> set[str]:
        return {network for peer in self.peers.values() for network in peer.allowed_ips}

    def _one(self, change: PeerChange) -> None:
        if change.remove:
            self.peers.pop(change.public_key, None)
            return
        for name, other in self.peers.items():
            if name != change.public_key:
                kept = other.allowed_ips - set(change.allowed_ips)
                self.peers[name] = other._replace(allowed_ips=kept)
        old = self.peers.get(change.public_key, PeerState(frozenset()))
        base = frozenset() if change.replace else old.allowed_ips
        psk = old.preshared_key if change.preshared_key is None else change.preshared_key
        self.peers[change.public_key] = old._replace(
            allowed_ips=base | set(change.allowed_ips),
            endpoint=change.endpoint or old.endpoint,
            keepalive=old.keepalive if change.keepalive is None else change.keepalive,
            preshared_key=None if psk and psk.value == ZERO else psk,
        )


PLANNED = st.builds(
    PlannedPeer,
    public_key=st.sampled_from(NAMES),
    allowed_ips=st.lists(st.sampled_from(NETWORKS), unique=True, max_size=3).map(tuple),
    endpoint_ip=st.sampled_from(["", "198.51.100.1", "2001:db8::1"]),
    endpoint_port=st.just(51820),
    keepalive=st.sampled_from([0, 25]),
    preshared_key=st.sampled_from([None, PresharedKey(key(8)), PresharedKey(key(9))]),
)
PLANS = st.lists(st.lists(PLANNED, max_size=4, unique_by=lambda p: p.public_key), min_size=1, max_size=6)


def settle(peers: Peers) -> None:
    assert not [o for o in peers.apply() if o.error and "already that of" not in o.error]
    assert not [o for o in peers.prune() if o.error]


@given(PLANS)
def test_any_plan_after_any_other_is_reached_and_then_nothing_is_told(plans: list[list[PlannedPeer]]) -> None:
    device = FakeDevice()
    peers = Peers(lambda: device, clock=lambda: NOW)
    plan: dict[str, PlannedPeer] = {}
    for wanted in plans:
        new = {peer.key: peer for peer in wanted}
        upserts: dict[str, PlanItem] = {k: p for k, p in new.items() if plan.get(k) != p}
        peers.update(upserts, plan.keys() - new.keys())
        before, device.homeless = device.owned(), set()
        settle(peers)
        claims = Claims()
        for peer in wanted:
            claims.set(peer.key, peer.allowed_ips)
        assert device.peers.keys() == {peer.public_key for peer in wanted}
        for peer in wanted:
            state = device.peers[peer.public_key]
            assert state.allowed_ips == claims.share(peer.key)
            assert (state.keepalive, state.preshared_key) == (peer.keepalive, peer.preshared_key)
            if peer.endpoint_ip:
                assert state.endpoint == (peer.endpoint_ip, 51820)
        assert not device.homeless & before & device.owned(), "what moved was always somewhere"
        told = len(device.told)
        settle(peers)
        peers.load()
        settle(peers)
        assert len(device.told) == told
        assert peers.actual == {f"peer/{name}": state for name, state in device.peers.items()}
        plan = new


def test_a_changed_peer_is_told_of_alone_and_of_what_changed_alone() -> None:
    device = FakeDevice()
    peers = Peers(lambda: device, clock=lambda: NOW)
    plan: dict[str, PlanItem] = {
        p.key: p for p in (PlannedPeer(key(n), (f"10.2.{n}.0/24",), "198.51.100.1", n) for n in range(1, 50))
    }
    peers.update(plan, ())
    settle(peers)
    device.told.clear()
    changed = PlannedPeer(key(7), ("10.2.7.0/24",), "198.51.100.2", 7)
    peers.update({changed.key: changed}, ())
    settle(peers)
    assert device.told == [PeerChange(key(7), endpoint=("198.51.100.2", 7))]


def test_a_node_with_a_new_key_takes_its_addresses_along_before_the_old_one_goes() -> None:
    device = FakeDevice()
    peers = Peers(lambda: device, clock=lambda: NOW)
    old, new = PlannedPeer(key(1), ("10.2.1.0/24",)), PlannedPeer(key(2), ("10.2.1.0/24",))
    peers.update({old.key: old}, ())
    settle(peers)
    device.told.clear()
    peers.update({new.key: new}, [old.key])
    settle(peers)
    assert [(c.public_key, c.remove) for c in device.told] == [(key(2), False), (key(1), True)]
    assert not device.homeless


@pytest.mark.parametrize(("stays_routed", "messages"), [(False, 1), (True, 2)])
def test_a_new_pod_cidr_is_one_message_where_no_packet_can_go_to_the_old_one(
    stays_routed: bool, messages: int
) -> None:
    old, new = "10.2.1.0/24", "10.2.9.0/24"
    device = FakeDevice()
    peers = Peers(lambda: device, clock=lambda: NOW)
    before, after = (PlannedPeer(key(1), (pods, "10.4.0.1/32")) for pods in (old, new))
    peers.update({before.key: before, route_key(old): Route(old, "wireguard")}, ())
    settle(peers)
    device.told.clear()
    peers.update({after.key: after}, [] if stays_routed else [route_key(old)])
    settle(peers)
    assert len(device.told) == messages
    assert device.told[0].replace == (messages == 1)
    assert device.peers[key(1)].allowed_ips == {new, "10.4.0.1/32"}


def test_an_allowed_ip_that_two_want_goes_to_one_and_the_other_is_named() -> None:
    device = FakeDevice()
    peers = Peers(lambda: device, clock=lambda: NOW)
    low, high = sorted([key(1), key(2)])
    for name in (low, high):
        peers.update({f"peer/{name}": PlannedPeer(name, ("10.5.0.1/32", "10.6.0.0/24"))}, ())
    outcomes = {o.key: o.error for o in peers.apply() if o.error}
    assert outcomes == {
        f"peer/{high}/{n}": f"peer/{high}: allowed IP {n} is already that of peer/{low}"
        for n in ("10.5.0.1/32", "10.6.0.0/24")
    }
    assert device.peers[low].allowed_ips == {"10.5.0.1/32", "10.6.0.0/24"}
    assert device.peers[high].allowed_ips == frozenset()
    peers.update({}, [f"peer/{low}"])
    mended = {o.key for o in peers.apply() if not o.error}
    assert outcomes.keys() <= mended
    assert device.peers[high].allowed_ips == {"10.5.0.1/32", "10.6.0.0/24"}


HERE, THERE = ("198.51.100.1", 1000), ("198.51.100.2", 2000)


def endpoint(handshake: float, news: bool = False, roams: bool = False) -> tuple[str, int] | None:
    wanted = PlannedPeer(key(1), (), *THERE, roams=roams)
    actual = PeerState(frozenset(), HERE, last_handshake=int(handshake))
    return endpoint_change(wanted, actual, NOW, news)


def test_an_endpoint_in_use_is_moved_by_news_alone() -> None:
    fresh, stale = NOW - SESSION + 1, NOW - SESSION - 1
    assert endpoint(0) == THERE, "there never was a session"
    assert endpoint(stale) == THERE
    assert endpoint(fresh) is None
    assert endpoint(fresh, news=True) == THERE
    assert endpoint(fresh, news=True, roams=True) is None
    assert endpoint(stale, roams=True) == THERE


def test_a_peer_that_roamed_is_left_alone_until_its_session_is_over() -> None:
    device, now = FakeDevice(), NOW
    peers = Peers(lambda: device, clock=lambda: now)
    planned = PlannedPeer(key(1), (), *THERE)
    peers.update({planned.key: planned}, ())
    settle(peers)
    device.peers[key(1)] = device.peers[key(1)]._replace(endpoint=HERE, last_handshake=int(NOW))
    peers.load()
    settle(peers)
    assert device.peers[key(1)].endpoint == HERE
    now += SESSION + 1
    peers.load()
    settle(peers)
    assert device.peers[key(1)].endpoint == THERE


def test_after_a_start_a_session_that_lives_is_not_disturbed() -> None:
    device = FakeDevice()
    device.peers[key(1)] = PeerState(frozenset({"10.2.1.0/24"}), HERE, last_handshake=int(NOW))
    peers = Peers(lambda: device, clock=lambda: NOW)
    planned = PlannedPeer(key(1), ("10.2.1.0/24",), *THERE)
    peers.update({planned.key: planned}, ())
    peers.load()
    settle(peers)
    assert device.told == []
    moved = PlannedPeer(key(1), ("10.2.1.0/24",), "198.51.100.3", 3000)
    peers.update({moved.key: moved}, ())
    settle(peers)
    assert device.told == [PeerChange(key(1), endpoint=("198.51.100.3", 3000))]


def test_peers_changed_by_hand_are_repaired() -> None:
    device = FakeDevice()
    peers = Peers(lambda: device, clock=lambda: NOW)
    plan: dict[str, PlanItem] = {p.key: p for p in (PlannedPeer(key(n), (f"10.2.{n}.0/24",)) for n in (1, 2))}
    peers.update(plan, ())
    settle(peers)
    del device.peers[key(1)]
    device.peers[key(2)] = device.peers[key(2)]._replace(allowed_ips=frozenset({"10.9.0.0/16"}))
    device.peers[key(3)] = PeerState(frozenset({"10.2.1.0/24"}))
    peers.load()
    outcomes = peers.apply() + peers.prune()
    assert all(o.repair and not o.error for o in outcomes)
    assert {o.key for o in outcomes} == {f"peer/{key(n)}" for n in (1, 2, 3)}
    assert {k: p.allowed_ips for k, p in device.peers.items()} == {
        key(1): {"10.2.1.0/24"},
        key(2): {"10.2.2.0/24"},
    }
