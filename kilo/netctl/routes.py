"""Routes of the plan, in the main table and in table 1107.

Ours are those with the protocol number PROTOCOL. The Go agent's are taken over: it left static
routes on its devices. Nothing else is ever replaced or removed: a route in the way is an error of
the one that wants its place.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import lru_cache

from kilo.model.net import version_of
from kilo.model.plan import Device, PlanItem, Route, route_key
from kilo.netctl.guard import Verdict
from kilo.netctl.host import Roles
from kilo.netctl.netlink.messages import (
    FAMILIES,
    MAIN_TABLE,
    PROTOCOL_STATIC,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RouteInfo,
    list_routes,
    pack_route,
    parse_route,
    route_facts,
)
from kilo.netctl.netlink.socket import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    KernelError,
    Message,
    Netlink,
    Request,
)
from kilo.netctl.objects import Objects, Withheld

PROTOCOL = 171
"""Our route, rule and address protocol number: not in iproute2's rt_protos nor in the kernel's list."""

KILO_TABLE = 1107
_DEVICES: tuple[Device, ...] = ("wireguard", "private", "tunnel")
_PROTOCOLS = {PROTOCOL_STATIC: "static"}
Judge = Callable[[Route], Verdict | None]


class Routes(Objects[RouteInfo]):
    """``guard`` tells why a route must not be set now, or None; ``name_of`` which peer carries one."""

    name = "routes"
    kind = "route"
    item_types = (Route,)
    gone = frozenset((errno.ESRCH, errno.ENODEV))

    def __init__(
        self,
        netlink: Netlink,
        roles: Roles,
        guard: Judge = lambda route: None,
        name_of: Callable[[Route], str] = lambda route: "",
    ) -> None:
        super().__init__(netlink)
        self._roles = roles
        self._guard = guard
        self._name_of = name_of
        self.moved: set[str] = set()
        """Networks to which the way leads by WireGuard since somebody cleared this, or no longer does."""

    def _wanted(self, item: PlanItem) -> RouteInfo | Withheld:
        assert isinstance(item, Route)  # noqa: S101 - item_types says so
        link = self._roles.link(item.device)
        if link is None:
            return Withheld(f"no {item.device} device yet")
        if not link.up:
            return Withheld(f"{link.name} is down")
        if verdict := self._guard(item):
            return Withheld(verdict.reason, verdict.keep, verdict.deliberate)
        version = version_of(item.dst)
        via, src = item.via, item.src
        if via and item.device == "wireguard" and version_of(via) != version:
            via = ""  # WireGuard picks the peer by destination; the gateway is there for people
        if src and version_of(src) != version:
            src = ""
        return RouteInfo(
            dst=item.dst,
            table=item.table or MAIN_TABLE,
            link=link.number,
            via=via,
            src=src,
            onlink=item.onlink and bool(via),
            protocol=PROTOCOL,
            metric=0,
        )

    def absent_networks(self) -> set[str]:
        """Destinations to which the plan has a route in the main table that cannot stand now."""
        items = [self._items.get(key) for key in self.absent()]
        return {item.dst for item in items if isinstance(item, Route) and not item.table}

    def _read(self) -> dict[str, RouteInfo]:
        found: dict[str, RouteInfo] = {}
        for family in FAMILIES:
            for protocol in (PROTOCOL, PROTOCOL_STATIC):
                for message in self._netlink.dump(RTM_GETROUTE, list_routes(family, protocol), optional=True):
                    facts = route_facts(message)
                    if (facts[0], facts[2]) != (family, protocol):
                        continue  # a kernel that cannot filter lists all
                    route = parse_route(message)
                    if route is not None and self._is_ours(route):
                        key = key_of(route)
                        found[key if key not in found else f"{key}#{route.link}/{route.via}"] = route
        return found

    def _is_ours(self, route: RouteInfo) -> bool:
        """Ours by protocol, or left by the Go agent.

        On the private device the Go agent's cannot be told from an administrator's, so there only
        one that stands where the plan wants a route, and looks as the Go agent's do, is taken over.
        """
        if route.protocol == PROTOCOL:
            return True
        if route.protocol != PROTOCOL_STATIC or route.metric or route.table not in (MAIN_TABLE, KILO_TABLE):
            return False
        if route.link in (self._roles.number("wireguard"), self._roles.number("tunnel")):
            return not route.dst.endswith("/0")
        return (
            route.onlink
            and route.link == self._roles.number("private")
            and key_of(route) in self.delta.desired
        )

    def _put(self, key: str, wanted: RouteInfo, actual: RouteInfo | None) -> list[Request]:
        wireguard = self._roles.number("wireguard")
        if actual is not None and (actual.link == wireguard) != (wanted.link == wireguard):
            self.moved.add(wanted.dst)
        how = NLM_F_EXCL if actual is None else NLM_F_REPLACE
        return [Request(RTM_NEWROUTE, NLM_F_CREATE | how, pack_route(wanted))]

    def _drop(self, key: str, actual: RouteInfo) -> list[Request]:
        return [Request(RTM_DELROUTE, 0, pack_route(actual, delete=True))]

    def _explain(self, key: str, error: KernelError) -> str:
        item = self._items.get(key)
        name = self._name_of(item) if isinstance(item, Route) else ""
        what = f"{key} to {name}" if name else key
        if error.errno == errno.EEXIST:
            return f"{what}: a route that is not ours is in its place ({error})"
        return f"{what}: {error}"

    def _shown(self, key: str, actual: RouteInfo) -> str:
        links = filter(None, map(self._roles.link, _DEVICES))
        name = next((link.name for link in links if link.number == actual.link), str(actual.link))
        return f"{actual.dst}{way_of(actual, name)}"

    def take(self, message: Message) -> bool:
        """Take an event in, unless we caused it. True if a route of ours is not as it was."""
        if message.port == self._netlink.port or message.kind not in (RTM_NEWROUTE, RTM_DELROUTE):
            return False
        protocol = route_facts(message)[2]
        if protocol != PROTOCOL and not message.flags & NLM_F_REPLACE:
            return False
        route = parse_route(message)
        if route is None:
            return False
        key = key_of(route)
        actual = self.delta.actual.get(key)
        if message.kind == RTM_NEWROUTE and protocol == PROTOCOL:
            if actual == route:
                return False
            self.delta.seen(key, route)
            return True
        if actual is None or (message.kind == RTM_DELROUTE and actual != route):
            return False
        self.delta.lost(key)
        return True


@lru_cache(1 << 14)
def _key(table: int, dst: str, metric: int) -> str:
    key = route_key(dst, 0 if table == MAIN_TABLE else table)
    return f"{key}#metric{metric}" if metric else key


def key_of(route: RouteInfo) -> str:
    """The plan key of a route that the kernel has."""
    return _key(route.table, route.dst, route.metric)


def way_of(route: RouteInfo, device: str) -> str:
    """All but the destination, as ``ip route`` writes it, but for our own protocol, which is left out."""
    words = [f" via {route.via}"] if route.via else []
    words.append(f" dev {device}")
    if route.table != MAIN_TABLE:
        words.append(f" table {route.table}")
    if route.protocol != PROTOCOL:
        words.append(f" proto {_PROTOCOLS.get(route.protocol, route.protocol)}")
    if route.src:
        words.append(f" src {route.src}")
    if route.metric:
        words.append(f" metric {route.metric}")
    if route.onlink:
        words.append(" onlink")
    return "".join(words)
