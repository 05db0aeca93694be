"""Events of the kernel, as they come to those who keep the objects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from kilo.bus import Loop
from kilo.netctl import monitor as module
from kilo.netctl.monitor import Monitor
from kilo.netctl.netlink.messages import GROUPS_ROUTE, RTM_NEWROUTE, RouteInfo, pack_route
from kilo.netctl.netlink.socket import NETLINK_ROUTE, NLM_F_CREATE, Events, Message, Netlink, Request
from tests.integration.netctl.hosts import Host, ip


class Heard:
    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.calls: list[str] = []
        self.news = True
        self.monitor = Monitor(self._taker("host"), self._taker("route"), self._taker("rule"))
        for name in ("host", "objects", "default", "lost"):
            setattr(self.monitor, f"on_{name}", lambda name=name: self.calls.append(name))
        self.loop = Loop()
        self.monitor.watch(self.loop)

    def _taker(self, name: str) -> module.Taker:
        def take(message: Message) -> bool:
            self.kinds.append(name)
            return self.news

        return take

    def after(self, command: str) -> tuple[set[str], list[str]]:
        """Which kinds of events followed, and who was called."""
        self.kinds, self.calls = [], []
        ip(command)
        self.loop.run_for(0.02)
        return set(self.kinds), self.calls


@pytest.fixture
def heard(host: Host) -> Iterator[Heard]:
    host.wire()
    made = Heard()
    with contextlib.closing(made.loop), contextlib.closing(made.monitor):
        yield made


def test_each_kind_goes_to_who_keeps_it(heard: Heard) -> None:
    kinds, calls = heard.after("link set eth0 mtu 1400")
    assert "host" in kinds and "host" in calls
    kinds, calls = heard.after("addr add 10.9.0.1/32 dev eth0")
    assert kinds == {"host", "route"} and sorted(calls) == ["host", "objects"]
    assert heard.after("route add 10.8.0.0/24 dev eth0") == ({"route"}, ["objects"])
    assert heard.after("rule add to 10.7.0.1 lookup 7") == ({"rule"}, ["objects"])
    assert heard.after("-6 rule add to fd00::1 lookup 7") == ({"rule"}, ["objects"])
    heard.news = False
    assert heard.after("route del 10.8.0.0/24") == ({"route"}, [])


def test_a_default_route_is_noticed(heard: Heard) -> None:
    heard.news = False
    assert heard.after("route add default via 10.1.0.1")[1] == ["default"]
    assert heard.after("route add default via 10.1.0.1 table 7")[1] == []
    assert heard.after("route del default")[1] == ["default"]


def test_lost_events_are_told_once_and_hearing_goes_on(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    heard.loop.remove_reader(heard.monitor._events.fileno())
    heard.monitor.close()
    heard.monitor._events = Events(NETLINK_ROUTE, GROUPS_ROUTE, buffer=20_000)
    with contextlib.closing(Netlink()) as netlink:
        routes = (RouteInfo(f"10.64.{n}.0/24", 254, 1, "", "", False, 3, 0) for n in range(250))
        netlink.change([Request(RTM_NEWROUTE, NLM_F_CREATE, pack_route(route)) for route in routes])
    heard.monitor.drain()
    assert heard.calls == ["lost"]
    ip("route del 10.64.3.0/24")
    heard.monitor.drain()
    assert heard.calls == ["lost", "objects"]


def test_drain_takes_in_all_that_was_said(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIMIT", 3)
    for n in range(20):
        ip(f"route add 10.8.{n}.0/24 dev eth0")
    heard.monitor.drain()
    assert heard.kinds.count("route") >= 20, "20, and what the kernel does for IPv6 on its own"
