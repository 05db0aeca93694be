"""The addresses of our devices: the WireGuard interface's, and the tunnel's.

Those devices are ours, so an address on them that the plan does not have is removed. A tunnel
device that the plan does not use may be somebody else's: there only what carries our protocol
number goes. Link-local addresses are the kernel's business.
"""

from __future__ import annotations

import errno

from kilo.model.net import canonical_network, ip_of, is_local, single, version_of
from kilo.model.plan import Device, Interface, PlanItem, Tunnel
from kilo.netctl.facts import CNI_BRIDGE
from kilo.netctl.host import Host, Roles
from kilo.netctl.netlink.messages import RTM_DELADDR, RTM_NEWADDR, AddressInfo, LinkInfo, pack_address
from kilo.netctl.netlink.socket import NLM_F_CREATE, NLM_F_REPLACE, Netlink, Request
from kilo.netctl.objects import Objects, Withheld
from kilo.netctl.routes import PROTOCOL


class Addresses(Objects[AddressInfo]):
    """Reads the host's addresses from ``host``, which the worker keeps fresh."""

    name = "addresses"
    kind = "address"
    item_types = (Interface, Tunnel)
    gone = frozenset((errno.EADDRNOTAVAIL, errno.ENODEV))

    def __init__(self, netlink: Netlink, host: Host, roles: Roles) -> None:
        super().__init__(netlink, same=lambda a, b: (a.link, a.interface) == (b.link, b.interface))
        self._host = host
        self._roles = roles

    def _wanted(self, item: PlanItem) -> AddressInfo | Withheld | None:
        assert isinstance(item, (Interface, Tunnel))  # noqa: S101 - item_types says so
        if not item.address:
            return None
        role: Device = "wireguard" if isinstance(item, Interface) else "tunnel"
        link = self._roles.link(role)
        if (
            link is None or link.number not in self._host.links
        ):  # it has just gone; its role goes with it soon
            return Withheld(f"no {role} device yet")
        holder = self._host.holder(ip_of(item.address))
        if holder is not None and holder.number != link.number and not _may_share(item, holder):
            return Withheld(f"{ip_of(item.address)} is an address of {holder.name}", keep=False)
        return AddressInfo(link.number, item.address, PROTOCOL)

    def _key(self, item_key: str, wanted: AddressInfo) -> str:
        return f"address/{self._host.links[wanted.link].name}/{wanted.interface}"

    def _stays(self, key: str) -> bool:
        """Keys name the device, which is just what is not known while an item is withheld."""
        return any(held.keep for held in self._withheld.values())

    def _read(self) -> dict[str, AddressInfo]:
        wireguard = self._roles.number("wireguard")
        tunnel = self._items.get("tunnel")
        owned = {wireguard}
        if isinstance(tunnel, Tunnel) and tunnel.address:
            owned.add(self._roles.number("tunnel"))
        found = {}
        for number, held in self._host.addresses.items():
            link = self._host.links.get(number)
            if link is None:
                continue
            for address in held.values():
                if address.protocol == PROTOCOL or (
                    number in owned and not is_local(ip_of(address.interface))
                ):
                    found[f"address/{link.name}/{address.interface}"] = address
        return found

    def _shown(self, key: str, actual: AddressInfo) -> str:
        link = self._host.links.get(actual.link)
        return f"{actual.interface} dev {link.name if link else actual.link}"

    def _put(self, key: str, wanted: AddressInfo, actual: AddressInfo | None) -> list[Request]:
        """An address that takes another's place does so within one batch, over a stepping stone.

        Added beside the old one it would be its secondary and go with it, and with an interface's
        last address the kernel takes every route over it; and a route by way of the old address,
        which is another node's from now on, is refused while it is still here.
        """
        put = _add(wanted)
        old = [] if actual else self._superseded(wanted)
        if not old:
            return [put]
        stone = wanted._replace(interface=single(ip_of(wanted.interface)))
        return [_add(stone), *map(_delete, old), put, _delete(stone)]

    def _superseded(self, wanted: AddressInfo) -> list[AddressInfo]:
        """What stands on the same link, in the same IPv4 subnet, and is not wanted."""
        if version_of(wanted.interface) != 4:
            return []
        subnet = canonical_network(wanted.interface)
        return [
            address
            for key, address in self.delta.actual.items()
            if key not in self.delta.desired
            and address.link == wanted.link
            and canonical_network(address.interface) == subnet
        ]

    def _drop(self, key: str, actual: AddressInfo) -> list[Request]:
        """With an address the kernel removes those that came later in its subnet: they are put back."""
        return [_delete(actual), *(_add(w) for w in self.delta.desired.values() if w.link == actual.link)]


def _may_share(item: PlanItem, holder: LinkInfo) -> bool:
    """The first address of the pod CIDR is the bridge's too, as the gateway of the pods."""
    return isinstance(item, Tunnel) and holder.name == CNI_BRIDGE


def _add(address: AddressInfo) -> Request:
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, pack_address(address))


def _delete(address: AddressInfo) -> Request:
    return Request(RTM_DELADDR, 0, pack_address(address._replace(protocol=0)))
