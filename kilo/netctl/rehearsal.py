"""Stand-ins for what changes the kernel: they read it, keep in mind what they are told, and send nothing.

With them the reconcilers make a pass that stays without effect; what it would have come to is seen
afterwards. What a request would bring about beside itself (routes that go with an address) is not played.
Used by kilo.netctl.diff; the firewall has its own in kilo.netctl.firewall.rehearsed.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from kilo.netctl.host import Host
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.messages import (
    FAMILIES,
    RTM_DELADDR,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    LinkInfo,
    list_routes,
    parse_link,
    parse_route,
    sets_up,
)
from kilo.netctl.netlink.socket import NLM_F_CREATE, NLM_F_EXCL, KernelError, Message, Netlink, Request
from kilo.netctl.wireguard.device import Device, DeviceState, PeerChange

NOT_YET = 1 << 24
"""The first index of interfaces that are not there; the kernel's are far less."""
_DEFAULT_MTU = 1420
_Place = tuple[int, str, int]
"""Of a route: table, destination, metric."""


class RehearsedNetlink(Netlink):
    """Dumps and questions go to the kernel; ``change`` goes to ``host`` alone, as if it had worked."""

    def __init__(self) -> None:
        super().__init__()
        self.host = RehearsedHost(self)
        self._places: set[_Place] | None = None

    def change(self, requests: Sequence[Request]) -> list[KernelError | None]:
        return [self._change(request) for request in requests]

    def _change(self, request: Request) -> KernelError | None:
        kind, flags, body = request
        if kind == RTM_NEWLINK:
            self.host.set_link(body, made=bool(flags & NLM_F_CREATE))
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            self.host.take(as_message(request))
        elif kind == RTM_NEWROUTE and flags & NLM_F_EXCL and self._is_taken(request):
            return KernelError(errno.EEXIST)
        return None

    def _is_taken(self, request: Request) -> bool:
        """Whether somebody's route is where a new one is to come."""
        if self._places is None:
            found = [
                parse_route(message)
                for family in FAMILIES
                for message in self.dump(RTM_GETROUTE, list_routes(family), optional=True)
            ]
            self._places = {(route.table, route.dst, route.metric) for route in found if route is not None}
        route = parse_route(as_message(request))
        return route is not None and (route.table, route.dst, route.metric) in self._places


class RehearsedHost(Host):
    """The host as it was when it was read first, and as it was changed since. Made by RehearsedNetlink."""

    def __init__(self, netlink: Netlink) -> None:
        super().__init__(netlink)
        self._read = False

    def load(self) -> None:
        if not self._read:
            super().load()
            self._read = True

    def set_link(self, body: bytes, made: bool) -> None:
        """What the body of an RTM_NEWLINK asks for."""
        asked = parse_link(Message(RTM_NEWLINK, 0, 0, body, 0, len(body)))
        if asked is None:
            return
        if made:
            number = max(NOT_YET, *self.links) + 1
            self.links[number] = LinkInfo(number, asked.name, asked.mtu or _DEFAULT_MTU, asked.kind, False)
            return
        link = self.links[asked.number]
        up = asked.up if sets_up(body) else link.up
        self.links[asked.number] = link._replace(mtu=asked.mtu or link.mtu, up=up)


class RehearsedDevice:
    """See kilo.netctl.wireguard.device.Device. ``real`` is None for one that is not there yet.

    ``before`` and ``after``: key and port as they are, and as they were set.
    """

    kind = "rehearsed"

    def __init__(self, real: Device | None) -> None:
        self._real = real
        self.before = DeviceState()
        self.after = DeviceState()
        self._key: PrivateKey | None = None
        self._port: int | None = None

    def read(self) -> DeviceState:
        self.before = self._real.read() if self._real is not None else DeviceState()
        key = self.before.private_key if self._key is None else self._key
        port = self.before.listen_port if self._port is None else self._port
        self.after = DeviceState(key, port, dict(self.before.peers))
        return self.after

    def configure(self, private_key: PrivateKey | None, listen_port: int | None) -> None:
        self._key = self._key if private_key is None else private_key
        self._port = self._port if listen_port is None else listen_port

    def change(self, changes: Sequence[PeerChange]) -> list[str]:
        return [""] * len(changes)

    def close(self) -> None:
        if self._real is not None:
            self._real.close()


def as_message(request: Request) -> Message:
    """A request as the kernel would tell of it."""
    return Message(request.kind, request.flags, 0, request.body, 0, len(request.body))
