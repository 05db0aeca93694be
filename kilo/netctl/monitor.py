"""Hears from the kernel what changes, and hands it to whoever keeps that kind of object.

Events only bring what is known up to date; acting on them is for the next pass, a moment later, so
that a burst makes one pass. Events that our own changes cause are no news to anybody.
"""

from __future__ import annotations

from collections.abc import Callable

from kilo.bus import Loop
from kilo.netctl.netlink.messages import (
    GROUP_LINK,
    GROUPS_ADDRESS,
    GROUPS_ROUTE,
    GROUPS_RULE,
    MAIN_TABLE,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    parse_route,
    route_facts,
)
from kilo.netctl.netlink.socket import NETLINK_ROUTE, Events, EventsLost, Message

_GROUPS = (GROUP_LINK, *GROUPS_ADDRESS, *GROUPS_ROUTE, *GROUPS_RULE)
_ROUTE = (RTM_NEWROUTE, RTM_DELROUTE)
_RULE = (RTM_NEWRULE, RTM_DELRULE)
_LIMIT = 2000
"""Events read in one go: some 20 ms of work."""

Taker = Callable[[Message], bool]


class Monitor:
    """``on_host``: interfaces or addresses are not as they were. ``on_objects``: a route or rule of
    ours is not. ``on_default``: a default route came or went. ``on_lost``: anything may have changed.

    ``host``, ``route`` and ``rule`` take an event of their kind, and tell whether it was news.
    """

    def __init__(self, host: Taker, route: Taker, rule: Taker) -> None:
        self._host = host
        self._route = route
        self._rule = rule
        self.on_host: Callable[[], None] = lambda: None
        self.on_objects: Callable[[], None] = lambda: None
        self.on_default: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None
        self._events = Events(NETLINK_ROUTE, _GROUPS)

    def watch(self, loop: Loop) -> None:
        """Follow events from now on; ``drain`` may be called beside."""
        loop.add_reader(self._events.fileno(), self._readable)

    def drain(self) -> None:
        """Take in all that the kernel has said up to now."""
        while self._read() >= _LIMIT:
            pass

    def _readable(self) -> None:
        self._read()

    def _read(self) -> int:
        try:
            messages = self._events.read(_LIMIT)
        except EventsLost:
            self.on_lost()
            return 0
        host = objects = default = False
        for message in messages:
            if message.kind in _ROUTE:
                objects = self._route(message) or objects
                default = default or _is_default(message)
            elif message.kind in _RULE:
                objects = self._rule(message) or objects
            else:
                host = self._host(message) or host
        if default:
            self.on_default()
        if host:
            self.on_host()
        if objects:
            self.on_objects()
        return len(messages)

    def close(self) -> None:
        self._events.close()


def _is_default(message: Message) -> bool:
    """Whether an event is about a default route of the main table."""
    if route_facts(message)[1] != 0:
        return False
    route = parse_route(message)
    return route is None or route.table == MAIN_TABLE
