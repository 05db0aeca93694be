"""What the kernel says of this host's interfaces and addresses, and which device has which role.

``Host`` is read by a dump and kept by events; it changes nothing. ``Roles`` is where plan items
find the device they name: only the reconcilers of the devices write it, so that no route can land
on a device that is not ours to use.
"""

from __future__ import annotations

import socket

from kilo.model.net import bounds, ip_of, single
from kilo.model.plan import Device
from kilo.netctl.netlink.messages import (
    FAMILIES,
    MAIN_TABLE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    AddressInfo,
    LinkInfo,
    list_addresses,
    list_links,
    list_routes,
    parse_address,
    parse_link,
    parse_route,
    route_facts,
)
from kilo.netctl.netlink.socket import Message, Netlink

CONTAINER_PORTS = ("veth", "tun", "dummy")
"""Kinds of links by which containers and virtual machines are ports of a bridge."""


class Host:
    """Interfaces by index, their addresses by text, and the index of the default route's, or 0.

    ``carried``: indexes of the interfaces that have had a carrier since they were set up. A cable that is
    out for a moment must not give the host another address.
    """

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self.links: dict[int, LinkInfo] = {}
        self.addresses: dict[int, dict[str, AddressInfo]] = {}
        self.carried: set[int] = set()
        self.default_link = 0
        self.touched: set[int] = set()
        """Indexes of interfaces that there was news of, until somebody clears it."""

    def load(self) -> None:
        """Read interfaces and addresses again. Raises TemporaryError."""
        links = [parse_link(m) for m in self._netlink.dump(RTM_GETLINK, list_links())]
        addresses = [parse_address(m) for m in self._netlink.dump(RTM_GETADDR, list_addresses())]
        self.links = {link.number: link for link in links if link is not None}
        self.carried &= self.links.keys()
        for link in self.links.values():
            self._note_carrier(link)
        self.addresses = {}
        for address in addresses:
            if address is not None:
                self.addresses.setdefault(address.link, {})[address.interface] = address

    def load_default(self) -> None:
        """Find the default route's interface: IPv4's before IPv6's, the lowest metric first."""
        for family in FAMILIES:
            best: tuple[int, int] | None = None
            for message in self._netlink.dump(RTM_GETROUTE, list_routes(family), optional=True):
                if route_facts(message)[:2] == (family, 0) and (route := parse_route(message)):
                    metric = route.metric or (1024 if family == socket.AF_INET6 else 0)
                    if route.table == MAIN_TABLE and route.link and (best is None or metric < best[0]):
                        best = (metric, route.link)
            if best is not None:
                self.default_link = best[1]
                return
        self.default_link = 0

    def take(self, message: Message) -> bool:
        """Take an event in. True if it was news about an interface or an address."""
        number = 0
        if message.kind in (RTM_NEWLINK, RTM_DELLINK):
            number = self._take_link(message)
        elif message.kind in (RTM_NEWADDR, RTM_DELADDR):
            number = self._take_address(message)
        if number:
            self.touched.add(number)
        return number != 0

    def _take_link(self, message: Message) -> int:
        """The interface's index if this is news, else 0."""
        link = parse_link(message)
        if link is None:
            return 0
        number = link.number
        if message.kind == RTM_NEWLINK:
            old, carried = self.links.get(number), number in self.carried
            self.links[number] = link
            self._note_carrier(link)
            came = carried != (number in self.carried) and bool(self.addresses.get(number))
            return number if came or _differ(old, link) else 0
        self.addresses.pop(number, None)
        self.carried.discard(number)
        return 0 if self.links.pop(number, None) is None else number

    def _note_carrier(self, link: LinkInfo) -> None:
        if not link.up:
            self.carried.discard(link.number)
        elif link.carrier:
            self.carried.add(link.number)

    def _take_address(self, message: Message) -> int:
        """The interface's index if this is news, else 0."""
        address = parse_address(message)
        if address is None:
            return 0
        held = self.addresses.setdefault(address.link, {})
        if message.kind == RTM_NEWADDR:
            known = held.get(address.interface) == address
            held[address.interface] = address
            return 0 if known else address.link
        return 0 if held.pop(address.interface, None) is None else address.link

    def uplinked(self) -> set[int]:
        """Indexes of the bridges and bonds that have a port which is neither a container's nor a virtual
        machine's."""
        return {
            link.master for link in self.links.values() if link.master and link.kind not in CONTAINER_PORTS
        }

    def named(self, name: str) -> LinkInfo | None:
        """The interface called ``name``."""
        return next((link for link in self.links.values() if link.name == name), None)

    def holder(self, ip: str) -> LinkInfo | None:
        """The interface that has the address ``ip``, with a prefix of any length."""
        for number, held in self.addresses.items():
            if number in self.links and any(ip_of(interface) == ip for interface in held):
                return self.links[number]
        return None

    def names_within(self, network: str) -> set[str]:
        """The names of the interfaces that have an address in ``network``."""
        version, first, last = bounds(network)
        found = set()
        for number, held in self.addresses.items():
            for address in held:
                of_version, ip, _ = bounds(single(ip_of(address)))
                if of_version == version and first <= ip <= last and number in self.links:
                    found.add(self.links[number].name)
        return found


def _differ(old: LinkInfo | None, new: LinkInfo) -> bool:
    """Whether an interface is not as it was. A carrier that comes or goes, and the bridge of a container's
    port, are no difference: every pod that starts or ends would be news."""
    master = old.master if old and new.kind in CONTAINER_PORTS else new.master
    return old is None or old._replace(carrier=new.carrier) != new._replace(master=master)


class Roles:
    """Which interface has which role now. ``generation`` moves when an answer changes."""

    def __init__(self) -> None:
        self.generation = 0
        self._links: dict[Device, LinkInfo] = {}

    def assign(self, role: Device, link: LinkInfo | None) -> None:
        """``link`` has ``role`` from now on, or nothing has."""
        old = self._links.get(role)
        if link is None:
            self._links.pop(role, None)
        else:
            self._links[role] = link
        if (old and (old.number, old.name, old.up)) != (link and (link.number, link.name, link.up)):
            self.generation += 1

    def link(self, role: Device) -> LinkInfo | None:
        return self._links.get(role)

    def numbers(self) -> set[int]:
        """The indexes of all interfaces that have a role."""
        return {link.number for link in self._links.values()}

    def number(self, role: Device) -> int:
        """The index of the interface that has ``role``, 0 if none has."""
        link = self._links.get(role)
        return link.number if link else 0
