"""The WireGuard interface of an earlier run with another ``--interface``: it is set down.

Until then it has the UDP port, this node's address and, to its peers, this node's identity. It
counts as ours with all of these marks: it is WireGuard's, has our private key, and an address or a route
of our protocol number; and no running netctl has it. Any other is left alone, and named by
kilo.netctl.ports where it has the port. It is not deleted, as at a clean-up: it may have been made by
others, for ``--create-interface=false``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from kilo.errors import TemporaryError
from kilo.model.net import ip_of, is_local
from kilo.model.plan import PlanItem
from kilo.netctl.host import Host
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.messages import (
    FAMILIES,
    RTM_DELADDR,
    RTM_GETROUTE,
    RTM_NEWLINK,
    LinkInfo,
    list_routes,
    pack_address,
    pack_link,
    parse_route,
)
from kilo.netctl.netlink.socket import Netlink, Request
from kilo.netctl.reconcile import Outcome
from kilo.netctl.routes import PROTOCOL
from kilo.netctl.sole import is_claimed
from kilo.netctl.steps import Steps
from kilo.netctl.wireguard.device import Device, PeerChange
from kilo.netctl.wireguard.held import open_device
from kilo.netctl.wireguard.uapi import socket_path

AGAIN = 2.0
"""Seconds until an interface that could not be read is read again."""
_KINDS = ("wireguard", "tun")


class EarlierInterface:
    """See kilo.netctl.reconcile.Reconciler. It stands before ``interface``, which may need its port."""

    name = "earlier interface"
    more = False

    def __init__(self, interface: str, key: PrivateKey, netlink: Netlink, host: Host) -> None:
        self.released: set[int] = set()
        """The UDP ports of those that were set down."""
        self._interface = interface
        self._key = key
        self._netlink = netlink
        self._host = host
        self._planned = False
        self._foreign: set[int] = set()
        """Indexes of those that are not ours. Each is judged once: an earlier run can leave no new one."""
        self._ours: dict[int, int] = {}
        """Those that are to be set down: index and UDP port."""
        self._marked: dict[int, float] = {}
        """Those with an address or a route of ours, whose key has not been read yet: index, and when to try.
        They are kept since the first pass may remove what marks them."""
        self._steps: dict[int, Steps] = {}
        self._clock: Callable[[], float] = time.monotonic
        self.has_successor: Callable[[], bool] = self._finds_successor
        """Whether the interface of this run is there, for which another can go down."""
        self.open_device: Callable[[LinkInfo], Device] = open_device

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        self._planned = True

    def load(self) -> None:
        """Nothing: it is in the list of interfaces."""

    def apply(self) -> list[Outcome]:
        if not self._planned:
            return []
        self._judge()  # now: its marks are addresses and routes, which the first pass removes
        if not self._ours or not self.has_successor():
            return []
        outcomes: list[Outcome] = []
        for number, link in [(number, self._host.links.get(number)) for number in self._ours]:
            change = partial(self._set_down, link) if link is not None and link.up else None
            made = self._steps[number].take(f"interface/earlier/{number}", change, self._clock())
            outcomes += made
            if change is None or (made and not made[0].error):
                del self._ours[number], self._steps[number]
                self._foreign.add(number)  # what sets it up from now on is not us
        return outcomes

    def prune(self) -> list[Outcome]:
        """Nothing: it goes first, since the interface of this run may need its port."""
        return []

    def clean_up(self) -> list[Outcome]:
        """Nothing: it went with the first plan."""
        return []

    def _finds_successor(self) -> bool:
        link = self._host.named(self._interface)
        return link is not None and _can_be_wireguard(link)

    def _judge(self) -> None:
        """Find those that are ours among the interfaces that have not been judged yet."""
        known = self._foreign | self._marked.keys() | self._ours.keys()
        new = [
            link.number
            for link in self._host.links.values()
            if link.number not in known and link.up and link.kind in _KINDS and link.name != self._interface
        ]
        if new:
            marked = self._numbers_with_our_marks()
            self._foreign.update(number for number in new if number not in marked)
            self._marked.update((number, float("-inf")) for number in new if number in marked)
        for number, due in list(self._marked.items()):
            link = self._host.links.get(number)
            if link is None:
                del self._marked[number]
            elif self._clock() >= due and link.up and _can_be_wireguard(link) and not is_claimed(link.name):
                self._look_into(link)

    def _look_into(self, link: LinkInfo) -> None:
        """Compare the key of an interface that has our other marks."""
        try:
            with contextlib.closing(self.open_device(link)) as device:
                state = device.read()
        except TemporaryError:  # as while wireguard-go starts, or is busy
            self._marked[link.number] = self._clock() + AGAIN
            return
        del self._marked[link.number]
        if state.private_key == self._key:
            self._ours[link.number] = state.listen_port
            self._steps[link.number] = Steps(f"{link.name}, left by an agent with another --interface")
        else:
            self._foreign.add(link.number)

    def _numbers_with_our_marks(self) -> set[int]:
        """The indexes of interfaces with an address or a route of ours; before Linux 5.18 addresses have no
        protocol number."""
        found = {
            number
            for number, addresses in self._host.addresses.items()
            if any(address.protocol == PROTOCOL for address in addresses.values())
        }
        for family in FAMILIES:
            for message in self._netlink.dump(RTM_GETROUTE, list_routes(family, PROTOCOL), optional=True):
                route = parse_route(message)
                if route is not None and route.protocol == PROTOCOL and route.link:
                    found.add(route.link)
        return found

    def _set_down(self, link: LinkInfo) -> None:
        """Take its peers, port and addresses, and set it down.

        A wireguard-go whose link is down goes on as before: it has its port, and speaks to its peers. The
        addresses have to go here where nothing says that they are ours: the new interface needs them.
        """
        with contextlib.closing(self.open_device(link)) as device:
            device.change([PeerChange(key, remove=True) for key in device.read().peers])
            device.configure(None, 0)
        addresses = [
            Request(RTM_DELADDR, 0, pack_address(address._replace(protocol=0)))
            for address in self._host.addresses.get(link.number, {}).values()
            if not is_local(ip_of(address.interface))
        ]
        down = Request(RTM_NEWLINK, 0, pack_link(link.number, up=False))
        error, *_ = self._netlink.change([down, *addresses])
        if error is not None:
            raise error
        self.released.add(self._ours[link.number])
        self._host.load()


def _can_be_wireguard(link: LinkInfo) -> bool:
    return link.kind == "wireguard" or (link.kind == "tun" and os.path.exists(socket_path(link.name)))
