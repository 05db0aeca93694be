"""Peers and the routes that they carry, on a device that is played here and refuses some of them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kilo.model.net import bounds
from kilo.model.plan import PlanItem, PlannedPeer, Route
from kilo.netctl.guard import Guard
from kilo.netctl.wireguard.device import PeerChange
from kilo.netctl.wireguard.peers import Peers
from tests.unit.netctl.plans import key
from tests.unit.netctl.wireguard.test_difference import FakeDevice


class RefusingDevice(FakeDevice):
    """Refuses every change of some peers."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()

    def change(self, changes: Sequence[PeerChange]) -> list[str]:
        sound = [c for c in changes if c.public_key not in self.refused]
        super().change(sound)
        return ["Invalid argument (EINVAL)" if c.public_key in self.refused else "" for c in changes]


class Box:
    """Peers and the guard, as kilo.netctl.plane has them work together, and a clock."""

    def __init__(self) -> None:
        self.device = RefusingDevice()
        self.now = 1000.0
        self.peers = Peers(lambda: self.device, clock=lambda: 1e9, timer=lambda: self.now)
        self.guard = Guard()
        self.items: dict[str, PlanItem] = {}
        self.messages: list[str] = []

    def plan(self, *items: PlanItem) -> None:
        """This is the whole plan now."""
        new = {item.key: item for item in items}
        upserts = {k: item for k, item in new.items() if self.items.get(k) != item}
        removals = self.items.keys() - new.keys()
        self.items = new
        self.guard.update(upserts, removals, self.now)
        self.peers.update(upserts, removals)

    def run(self) -> None:
        """A pass, after all that failed has become due."""
        self.now += 60.0
        self.messages = [o.error for o in self.peers.apply() if o.error]
        self.guard.lacks(self.peers.lacking(), self.now)
        self.peers.prune()

    def standing(self) -> set[str]:
        """Destinations to which a route may be set."""
        routes = [item for item in self.items.values() if isinstance(item, Route)]
        return {route.dst for route in routes if self.guard.verdict(route) is None}

    def is_carried(self, network: str) -> bool:
        version, first, last = bounds(network)
        for found in map(bounds, self.device.owned()):
            if found[0] == version and found[1] <= first and last <= found[2]:
                return True
        return False


OFFICE = PlannedPeer(key(1), ("10.6.0.0/24", "10.5.0.1/32"), name="peer office")
WAYS = (Route("10.6.0.0/24", "wireguard"), Route("10.5.0.1/32", "wireguard"))
OTHER, OTHER_WAY = PlannedPeer(key(2), ("10.2.2.0/24",), name="node n2"), Route("10.2.2.0/24", "wireguard")


def test_peer_that_the_device_refuses_has_no_route_and_is_named() -> None:
    box = Box()
    box.device.refused = {key(1)}
    box.plan(OFFICE, *WAYS, OTHER, OTHER_WAY)
    box.run()
    assert box.standing() == {"10.2.2.0/24"}, "it costs itself alone"
    assert box.messages == [f"{OFFICE.key}, peer office: Invalid argument (EINVAL)"]
    verdict = box.guard.verdict(WAYS[0])
    assert verdict is not None and not verdict.keep and not verdict.deliberate
    box.device.refused = set()
    box.run()
    assert box.standing() == {"10.2.2.0/24", "10.6.0.0/24", "10.5.0.1/32"}


def test_peer_that_lacks_one_allowed_ip_loses_that_route_alone() -> None:
    box = Box()
    box.plan(OFFICE, *WAYS)
    box.run()
    more = PlannedPeer(key(1), (*OFFICE.allowed_ips, "10.7.0.0/24"))
    box.device.refused = {key(1)}
    box.plan(more, *WAYS, Route("10.7.0.0/24", "wireguard"))
    box.run()
    assert box.standing() == {"10.6.0.0/24", "10.5.0.1/32"}


def test_peer_that_somebody_removes_for_good_has_no_route() -> None:
    box = Box()
    box.plan(OFFICE, *WAYS)
    box.run()
    box.device.peers.clear()
    box.device.refused = {key(1)}
    box.peers.load()
    box.run()
    assert box.standing() == set()


def test_route_of_a_peer_that_was_refused_before_is_not_set() -> None:
    """As where the validator refuses the peer: the plan that is applied has the route alone."""
    box = Box()
    box.plan(*WAYS)
    box.run()
    assert box.standing() == set()
    box.plan(OFFICE, *WAYS)
    box.run()
    assert len(box.standing()) == 2


def test_route_inside_a_wider_allowed_ip_stands_with_it() -> None:
    box = Box()
    inside = Route("10.6.0.128/25", "wireguard")
    box.plan(OFFICE, inside)
    box.run()
    assert box.standing() == {"10.6.0.128/25"}
    box.plan(inside)
    box.run()
    assert box.standing() == set()


def test_routes_by_other_devices_need_no_peer() -> None:
    box = Box()
    box.plan(Route("10.6.0.0/24", "private", "10.0.0.1"), Route("10.7.0.0/24", "tunnel", "10.0.0.1"))
    box.run()
    assert len(box.standing()) == 2


NETWORKS = ["10.6.0.0/24", "10.6.0.128/25", "10.7.0.0/24", "fd00:6::/64"]
PEERS = st.builds(
    PlannedPeer,
    public_key=st.sampled_from([key(n) for n in range(3)]),
    allowed_ips=st.lists(st.sampled_from(NETWORKS), unique=True, max_size=3).map(tuple),
    endpoint_ip=st.sampled_from(["", "198.51.100.1", "10.6.0.5"]),
    endpoint_port=st.just(51820),
)
ROUTES = st.builds(Route, st.sampled_from(NETWORKS), st.just("wireguard"))
PLANS = st.lists(PEERS | ROUTES, max_size=6, unique_by=lambda item: item.key)
REFUSED = st.sets(st.sampled_from([key(n) for n in range(3)]))
LOST = st.sets(st.sampled_from([key(n) for n in range(3)]))


@given(st.lists(st.tuples(PLANS, REFUSED, LOST), max_size=6))
def test_any_route_that_stands_is_carried_by_a_peer_of_the_device(
    steps: list[tuple[list[PlanItem], set[str], set[str]]],
) -> None:
    box = Box()
    for items, refused, lost in steps:
        for public_key in lost:
            box.device.peers.pop(public_key, None)
        box.device.refused = refused
        box.plan(*items)
        box.peers.load()
        box.run()
        assert all(map(box.is_carried, box.standing()))
        box.device.refused = set()
        box.run()
        planned = {n for p in items if isinstance(p, PlannedPeer) for n in p.allowed_ips}
        endpoints = {p.endpoint_ip for p in items if isinstance(p, PlannedPeer)}
        if not endpoints & {"10.6.0.5"}:
            standing = {r.dst for r in items if isinstance(r, Route)} & planned
            assert standing <= box.standing(), "and it comes back with its peer"
    box.plan()
    box.run()
    assert not box.guard.watching, "nothing is kept of what is gone"
