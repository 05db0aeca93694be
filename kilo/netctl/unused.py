"""tunl0 once the plan has no use for it: it is set down before the firewall stops guarding it.

What is up and takes IPIP from anybody lets anybody speak to the pods as if he were one of the mesh.
So the guard stays until the device is down (``is_open``), and the device is set down after the routes
have left it and before the firewall's rules go: at the end of a pass, and at the clean-up. Removed it
is not: in some kernels every network namespace has one.

A device that somebody else uses is left alone: of another kind, with an address that is not ours, or
with a route that is not. Before Linux 5.18 addresses do not say whose they are: there they count as
ours if the plan used the device in this process's life, or routes of ours lead over it. What was
found down once is not looked at again before the plan has used it: who sets it up is not us.
Called by kilo.netctl.worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from kilo.model.net import ip_of, is_local
from kilo.model.plan import PlanItem, Tunnel
from kilo.netctl.failures import TUNNEL
from kilo.netctl.host import Host, Roles
from kilo.netctl.netlink.messages import (
    FAMILIES,
    PROTOCOL_KERNEL,
    PROTOCOL_STATIC,
    RTM_GETROUTE,
    RTM_NEWLINK,
    LinkInfo,
    list_routes,
    pack_link,
    parse_route,
)
from kilo.netctl.netlink.socket import Netlink, Request
from kilo.netctl.reconcile import Outcome
from kilo.netctl.routes import PROTOCOL
from kilo.netctl.steps import Steps
from kilo.netctl.tunnel import IPIP

DOWN = "tunnel/down"
"""The outcome."""
_OURS = (PROTOCOL, PROTOCOL_STATIC)
"""Protocols of routes: ours, and the Go agent's."""


class UnusedTunnel:
    """See kilo.netctl.reconcile.Reconciler. It stands between the firewall and the peers."""

    name = "unused tunnel"
    more = False

    def __init__(self, netlink: Netlink, host: Host, roles: Roles, kind: str = "ipip") -> None:
        """``kind``: the device's kind."""
        self._netlink = netlink
        self._host = host
        self._roles = roles
        self._kind = kind
        self._planned = False
        self._wanted = False
        self._done = False
        """It is down, or somebody else's: it is left alone until the plan has used it again."""
        self._used = 0
        """The index of the device that the plan used, or that routes of ours led over."""
        self._ours = 0
        """The index of the device that is to be set down."""
        self._clock: Callable[[], float] = time.monotonic
        self._steps = Steps(IPIP)

    def is_open(self) -> bool:
        """Look whether it is ours, unused, and would still take what comes: it has to be guarded.

        Raises TemporaryError.
        """
        if not self._planned or self._wanted or self._done:
            return False
        self.look()
        self._done = self._to_close() is None
        return not self._done

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        self._planned = True
        item = upserts.get(TUNNEL)
        if isinstance(item, Tunnel):
            self._wanted = item.kind != "flannel"
        elif TUNNEL in removals:
            self._wanted = False
        else:
            return
        self._done = False
        self._steps.again(DOWN)

    def load(self) -> None:
        """Nothing: it is looked at when it is not wanted, and only then."""

    def look(self) -> None:
        """See whose the device is. Raises TemporaryError."""
        link = self._link()
        self._ours = 0
        if link is None or not link.up:
            return
        mine, strange = self._routes(link.number)
        if mine:
            self._used = link.number
        if not strange and (self._used == link.number or not self._has_strange_address(link.number)):
            self._ours = link.number

    def apply(self) -> list[Outcome]:
        if self._wanted:
            used = self._roles.link("tunnel")
            if used is not None and used.name == IPIP:
                self._used = used.number
        return []

    def prune(self) -> list[Outcome]:
        link = None if self._wanted or self._done or not self._planned else self._to_close()
        change = None if link is None else partial(self._set_down, link.number)
        return self._steps.take(DOWN, change, self._clock())

    def clean_up(self) -> list[Outcome]:
        """The caller has called ``look`` before any route of ours went."""
        self._planned, self._wanted, self._done = True, False, False
        self._steps.again(DOWN)
        self.look()
        return self.prune()

    def _link(self) -> LinkInfo | None:
        """tunl0, if it is an IPIP tunnel."""
        link = self._host.named(IPIP)
        return link if link is not None and link.kind == self._kind else None

    def _to_close(self) -> LinkInfo | None:
        """The device, if it is ours by what was read last, and up."""
        link = self._link()
        return link if link is not None and link.up and link.number == self._ours else None

    def _has_strange_address(self, number: int) -> bool:
        return any(
            address.protocol != PROTOCOL and not is_local(ip_of(interface))
            for interface, address in self._host.addresses.get(number, {}).items()
        )

    def _routes(self, number: int) -> tuple[bool, bool]:
        """Whether routes of ours lead over the device, and whether others do that the kernel did not make."""
        mine = strange = False
        for family in FAMILIES:
            for message in self._netlink.dump(RTM_GETROUTE, list_routes(family), optional=True):
                route = parse_route(message)
                if route is not None and route.link == number:
                    mine = mine or route.protocol in _OURS
                    strange = strange or route.protocol not in (*_OURS, PROTOCOL_KERNEL)
        return mine, strange

    def _set_down(self, number: int) -> None:
        (error,) = self._netlink.change([Request(RTM_NEWLINK, 0, pack_link(number, up=False))])
        if error is not None:
            raise error
        self._host.load()
