"""Routes of this host that are not ours: for ``kg doctor``, which only reads."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import NamedTuple

from kilo.netctl.netlink.messages import MAIN_TABLE, RTM_GETROUTE, list_routes, parse_route
from kilo.netctl.netlink.socket import Netlink
from kilo.netctl.routes import PROTOCOL


class ForeignRoute(NamedTuple):
    """``dst``: a Network; ``device``: the interface's name, "" if it is gone by now."""

    dst: str
    device: str


def routes_of_others(family: int) -> Iterator[ForeignRoute]:
    """Unicast routes of the main table that somebody else made. Raises KernelError, TemporaryError."""
    with contextlib.closing(Netlink()) as netlink:
        for message in netlink.dump(RTM_GETROUTE, list_routes(family), optional=True):
            route = parse_route(message)
            if route is not None and route.table == MAIN_TABLE and route.protocol != PROTOCOL:
                yield ForeignRoute(route.dst, _name_of(route.link))


def _name_of(link: int) -> str:
    try:
        return socket.if_indextoname(link)
    except OSError:
        return ""
