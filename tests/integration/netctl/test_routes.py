"""Routes in a real kernel: what is set, replaced, taken over, left alone and removed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from kilo.model.plan import Device, PlanItem, Route
from kilo.netctl.guard import Verdict
from kilo.netctl.host import Host as HostView
from kilo.netctl.host import Roles
from kilo.netctl.netlink.messages import GROUPS_ROUTE
from kilo.netctl.netlink.socket import NETLINK_ROUTE, Events, Netlink
from kilo.netctl.reconcile import Outcome
from kilo.netctl.routes import PROTOCOL, Routes
from tests.integration.netctl.hosts import Host, ip, lines

OURS = str(PROTOCOL)


class Table:
    """The reconciler, on a host with the devices kilo0 and tunl0 (played by veths) and eth0."""

    def __init__(self, made: Host) -> None:
        self.host = made
        made.wire()
        made.wire("kilo0", "10.4.0.1/16")
        made.wire("tunl0", "10.2.0.1/32")
        ip("addr add fd00::10/64 dev eth0 nodad")
        ip("addr add fd04::1/64 dev kilo0 nodad")
        self.netlink = Netlink()
        self.view = HostView(self.netlink)
        self.roles = Roles()
        self.withheld: dict[str, Verdict] = {}
        self.routes = Routes(self.netlink, self.roles, lambda route: self.withheld.get(route.dst))
        self.refresh()

    def refresh(self) -> None:
        self.view.load()
        roles: dict[Device, str] = {"private": "eth0", "wireguard": "kilo0", "tunnel": "tunl0"}
        for role, name in roles.items():
            self.roles.assign(role, self.view.named(name))

    def want(self, *items: Route, remove: tuple[str, ...] = ()) -> None:
        upserts: dict[str, PlanItem] = {item.key: item for item in items}
        self.routes.update(upserts, remove)

    def run(self) -> list[Outcome]:
        """A pass; the outcomes that are errors."""
        self.routes.resolve()
        self.routes.load()
        outcomes = self.routes.apply()
        while self.routes.more:
            outcomes += self.routes.apply()
        return [o for o in outcomes + self.routes.prune() if o.error]

    def sent(self) -> int:
        """Changes sent by a pass."""
        before = self.netlink.sent
        self.run()
        return self.netlink.sent - before


@pytest.fixture
def table(host: Host) -> Iterator[Table]:
    made = Table(host)
    yield made
    made.netlink.close()


PODS = Route("10.2.1.0/24", "wireguard", "10.4.0.2", "10.1.0.10", onlink=True)


def of(dst: str, table: str = "main") -> list[str]:
    return [line for line in lines(f"route show table {table}") if line.startswith(dst)]


def test_sets_the_kinds_of_routes_that_plans_have(table: Table) -> None:
    table.want(
        PODS,
        Route("10.5.0.1/32", "wireguard", src="10.1.0.10"),
        Route("10.2.2.0/24", "private", "10.1.0.77", onlink=True),
        Route("10.1.0.77/32", "tunnel", "10.1.0.77", "10.1.0.10", 1107, onlink=True),
        Route("fd10::/64", "wireguard", "fd04::2", onlink=True),
        Route("fd11::1/128", "wireguard", src="10.1.0.10"),
        Route("fd12::/64", "wireguard", "10.4.0.9", onlink=True),
        Route("10.2.3.0/24", "wireguard", "fd04::3", "10.1.0.10", onlink=True),
        Route("10.2.4.0/24", "private", "fd00::77", onlink=True),
    )
    assert table.run() == []
    assert [line for line in lines("route") if OURS in line] == [
        f"10.2.1.0/24 via 10.4.0.2 dev kilo0 proto {OURS} src 10.1.0.10 onlink",
        f"10.2.2.0/24 via 10.1.0.77 dev eth0 proto {OURS} onlink",
        f"10.2.3.0/24 dev kilo0 proto {OURS} scope link src 10.1.0.10",
        f"10.2.4.0/24 via inet6 fd00::77 dev eth0 proto {OURS} onlink",
        f"10.5.0.1 dev kilo0 proto {OURS} scope link src 10.1.0.10",
    ]
    assert lines("route show table 1107") == [
        f"10.1.0.77 via 10.1.0.77 dev tunl0 proto {OURS} src 10.1.0.10 onlink"
    ]
    assert [line for line in lines("-6 route") if OURS in line] == [
        f"fd10::/64 via fd04::2 dev kilo0 proto {OURS} metric 1024 onlink pref medium",
        f"fd11::1 dev kilo0 proto {OURS} metric 1024 pref medium",
        f"fd12::/64 dev kilo0 proto {OURS} metric 1024 pref medium",
    ]
    assert table.sent() == 0


def test_a_change_replaces_in_one_message(table: Table) -> None:
    table.want(PODS, Route("fd10::/64", "wireguard", "fd04::2", onlink=True))
    table.run()
    table.want(
        Route(PODS.dst, "private", "10.1.0.77", onlink=True),
        Route("fd10::/64", "wireguard", "fd04::3", onlink=True),
    )
    assert table.sent() == 2
    assert of(PODS.dst) == [f"10.2.1.0/24 via 10.1.0.77 dev eth0 proto {OURS} onlink"]
    assert [line for line in lines("-6 route") if OURS in line] == [
        f"fd10::/64 via fd04::3 dev kilo0 proto {OURS} metric 1024 onlink pref medium"
    ]
    assert table.sent() == 0


def test_an_ipv6_route_gains_and_loses_its_gateway(table: Table) -> None:
    with_gateway = Route("fd10::/64", "wireguard", "fd04::2", onlink=True)
    for route in (with_gateway, Route("fd10::/64", "wireguard"), with_gateway):
        table.want(route)
        assert table.run() == []
        table.run()
        via = f"via {route.via} " if route.via else ""
        flag = "onlink " if route.via else ""
        assert [line for line in lines("-6 route") if OURS in line] == [
            f"fd10::/64 {via}dev kilo0 proto {OURS} metric 1024 {flag}pref medium"
        ]


def test_what_is_no_longer_wanted_goes_and_nothing_else(table: Table) -> None:
    foreign = [
        "10.9.0.0/24 via 10.1.0.99 dev eth0 proto bird",
        "10.9.1.0/24 via 10.1.0.99 dev eth0 proto static",
        "10.9.2.0/24 dev kilo0 proto bird scope link",
        "default via 10.1.0.1 dev eth0 proto static",
    ]
    for line in foreign:
        ip(f"route add {line}")
    ip("route add default dev kilo0 proto static metric 50")
    ip(f"route add 10.8.0.0/24 dev kilo0 proto {OURS}")
    ip(f"route add 10.8.0.0/24 dev eth0 proto {OURS} metric 7")
    table.want(PODS)
    table.run()
    table.want(remove=(PODS.key,))
    assert table.run() == []
    assert not [line for line in lines("route show table all") if OURS in line]
    assert set(foreign) <= set(lines("route"))
    assert "default dev kilo0 proto static scope link metric 50" in lines("route")


def test_takes_over_what_the_go_agent_left(table: Table) -> None:
    wanted_there = Route("10.2.5.0/24", "private", "10.1.0.77", onlink=True)
    ip("route add 10.2.1.0/24 via 10.4.0.2 dev kilo0 proto static src 10.1.0.10 onlink")
    ip("route add 10.2.9.0/24 via 10.4.0.9 dev kilo0 proto static onlink")
    ip("route add 10.1.0.77/32 via 10.1.0.77 dev tunl0 proto static onlink table 1107")
    ip("route add 10.2.5.0/24 via 10.1.0.5 dev eth0 proto static onlink")
    ip("route add 10.2.6.0/24 via 10.1.0.6 dev eth0 proto static onlink")
    table.want(PODS, wanted_there)
    assert table.run() == []
    assert of(PODS.dst) == [f"10.2.1.0/24 via 10.4.0.2 dev kilo0 proto {OURS} src 10.1.0.10 onlink"]
    assert of("10.2.9.0/24") == of("10.1.0.77", "1107") == []
    assert of("10.2.5.0/24") == [f"10.2.5.0/24 via 10.1.0.77 dev eth0 proto {OURS} onlink"]
    assert of("10.2.6.0/24") == ["10.2.6.0/24 via 10.1.0.6 dev eth0 proto static onlink"]


def test_an_error_costs_its_own_route_and_is_named(table: Table) -> None:
    ip("route add 10.2.7.0/24 via 10.1.0.99 dev eth0")
    bad = Route("10.2.6.0/24", "wireguard", "10.4.0.6", src="10.99.0.1", onlink=True)
    taken = Route("10.2.7.0/24", "wireguard", "10.4.0.7", onlink=True)
    last = Route("10.2.8.0/24", "wireguard", "10.4.0.8", onlink=True)
    table.want(PODS, bad, taken, last)
    refused, in_the_way = table.run()
    assert refused.key == bad.key and "EINVAL" in refused.error and "prefsrc" in refused.error
    assert in_the_way.key == taken.key and "not ours" in in_the_way.error and "EEXIST" in in_the_way.error
    assert of(PODS.dst) and of(last.dst)
    assert of(taken.dst) == ["10.2.7.0/24 via 10.1.0.99 dev eth0"]
    before = table.netlink.sent
    assert table.routes.apply() == [], "those that failed wait for their turn"
    assert table.netlink.sent == before
    ip("route del 10.2.7.0/24")
    table.routes._clock = lambda: time.monotonic() + 2.0
    ip("addr add 10.99.0.1/32 dev lo")
    assert table.run() == []
    assert of(bad.dst) and "dev kilo0" in of(taken.dst)[0]


def test_routes_wait_for_their_device_and_keep_what_is_there(table: Table) -> None:
    table.want(PODS, Route("10.2.2.0/24", "tunnel", "10.1.0.2", onlink=True))
    table.run()
    table.roles.assign("tunnel", None)
    (waiting,) = table.run()
    assert waiting.waits and "no tunnel device yet" in waiting.error and "10.2.2.0/24" in waiting.error
    assert of("10.2.2.0/24") and of(PODS.dst)
    table.refresh()
    assert table.run() == []
    ip("link set kilo0 down")
    table.refresh()
    (waiting,) = table.run()
    assert "kilo0 is down" in waiting.error
    ip("link set kilo0 up")
    table.refresh()
    assert table.run() == []
    assert of(PODS.dst)


def test_what_is_said_of_those_that_wait_does_not_change_with_their_number(table: Table) -> None:
    """Else a mesh that changes would write a line a second."""
    table.roles.assign("wireguard", None)
    others = [Route(f"10.2.{n}.0/24", "wireguard", f"10.4.0.{n}") for n in range(2, 9)]
    said = set()
    for n, route in enumerate(others):
        table.want(PODS, route, remove=tuple(other.key for other in others[: n - 2]))
        said |= {outcome.error for outcome in table.run()}
    assert said == {f"routes such as {PODS.key}: no wireguard device yet"}
    table.want(remove=(PODS.key,))
    (outcome,) = table.run()
    assert outcome.error == f"routes such as {others[-3].key}: no wireguard device yet"


def test_a_route_that_the_guard_withholds_is_taken_away(table: Table) -> None:
    table.want(PODS)
    table.run()
    table.withheld[PODS.dst] = Verdict("its peer has not answered yet", keep=True)
    (outcome,) = table.run()
    assert outcome.waits and outcome.error.endswith("not answered yet")
    assert of(PODS.dst), "what is there may stay"
    table.withheld[PODS.dst] = Verdict("it would carry the way to its own peer", keep=False)
    (outcome,) = table.run()
    assert outcome.waits and outcome.error.endswith("its own peer")
    assert of(PODS.dst) == []
    table.withheld[PODS.dst] = Verdict("its peer has not answered yet", keep=True)
    table.run()
    assert of(PODS.dst) == [], "what is not there is not set"
    del table.withheld[PODS.dst]
    assert table.run() == []
    assert of(PODS.dst)


def test_events_tell_of_every_way_to_lose_a_route(table: Table) -> None:
    other = Route("10.2.2.0/24", "wireguard", "10.4.0.3", onlink=True)
    table.want(PODS, other)
    events = Events(NETLINK_ROUTE, GROUPS_ROUTE)
    table.run()

    def news() -> bool:
        return sum(table.routes.take(message) for message in events.read(1000)) > 0

    assert not news(), "what we did ourselves is no news"
    ip("route add 10.77.0.0/24 dev kilo0")
    assert not news()
    ip("route del 10.77.0.0/24")
    assert not news()
    ip(f"route del {PODS.dst}")
    assert news()
    (repair,) = table.routes.apply()
    assert repair == Outcome(PODS.key, repair=True)
    assert of(PODS.dst)
    ip(f"route change {PODS.dst} dev kilo0 proto {OURS}")
    assert news()
    table.routes.apply()
    assert of(PODS.dst) == [f"10.2.1.0/24 via 10.4.0.2 dev kilo0 proto {OURS} src 10.1.0.10 onlink"]
    ip(f"route replace {other.dst} dev eth0")
    assert news()
    (refused,) = table.routes.apply()
    assert "not ours" in refused.error, "somebody else's is not overwritten"
    events.close()


def test_an_interface_that_vanishes_between_reading_and_changing(table: Table) -> None:
    """What was read says that it is there; it costs its own routes."""
    far = Route("10.2.2.0/24", "private", "10.1.0.77", onlink=True)
    table.want(PODS, far)
    table.routes.load()
    ip("link del kilo0")
    failed, done = sorted(table.routes.apply(), key=lambda outcome: not outcome.error)
    assert failed.key == PODS.key and failed.error.endswith("No such device (ENODEV)") and not failed.waits
    assert done == Outcome(far.key) and of(far.dst)
    table.refresh()
    (waiting,) = table.run()
    assert waiting.waits and "no wireguard device yet" in waiting.error
    table.host.wire("kilo0", "10.4.0.1/16")
    table.refresh()
    assert table.run() == []
    assert of(PODS.dst)


def test_a_route_over_an_interface_that_vanishes_before_it_can_be_removed(table: Table) -> None:
    table.want(PODS)
    table.run()
    table.want(remove=(PODS.key,))
    ip("link del kilo0")
    assert table.routes.prune() == [Outcome(PODS.key)], "it is gone, as it should be"


def test_clean_up_leaves_nothing_of_ours(table: Table) -> None:
    table.want(*(Route(f"10.{n // 200 + 64}.{n % 200}.0/24", "wireguard") for n in range(2500)))
    assert table.run() == []
    assert len([line for line in lines("route") if OURS in line]) == 2500
    table.routes.clean_up()
    assert not [line for line in lines("route show table all") if OURS in line]
