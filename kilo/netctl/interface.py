"""The WireGuard interface: that it exists, has our key and port, its MTU, and is up or down.

An interface of that name that is not WireGuard's is reported and not touched. One that an earlier
run made is adopted with all that is in it. It goes up only once key and port are set.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from kilo.config import Config
from kilo.errors import TemporaryError
from kilo.model.plan import Interface, PlanItem
from kilo.netctl import ports, userspace
from kilo.netctl.failures import INTERFACE, LINK, SETTINGS
from kilo.netctl.fights import Fights
from kilo.netctl.host import Host, Roles
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.messages import RTM_DELLINK, RTM_NEWLINK, LinkInfo, pack_link
from kilo.netctl.netlink.socket import NLM_F_CREATE, NLM_F_EXCL, KernelError, Netlink, Request
from kilo.netctl.reconcile import Backoff, Outcome
from kilo.netctl.steps import NotYet, Steps, Waits
from kilo.netctl.userspace import Launcher
from kilo.netctl.wireguard.device import Device, DeviceRefused, DeviceState
from kilo.netctl.wireguard.held import open_device

DOWN = "interface/down"
"""The outcome of setting it down; the others are in kilo.netctl.failures."""
_VANISH = 2.0
_SPARE, _FRENZY = 2, 60.0
"""So often in so many seconds is an interface that vanished made again without a pause."""


class Starting(TemporaryError):
    """wireguard-go is on its way; it is known when it has arrived."""


class WireGuardInterface:
    """``device`` is the device once it is there and ours to use, ``state`` what it last said.

    Before the first ``update`` it makes or adopts the interface and no more.
    """

    name = "interface"
    more = False

    def __init__(
        self, config: Config, key: PrivateKey, netlink: Netlink, host: Host, roles: Roles, launcher: Launcher
    ) -> None:
        self.fights = Fights()
        self.device: Device | None = None
        self.state = DeviceState()
        self._config = config
        self._interface = config.interface
        self._key = key
        self._netlink = netlink
        self._host = host
        self._roles = roles
        self._launcher = launcher
        self._number = 0
        self._candidate: tuple[int, Device] | None = None
        """A device, by its link's number, that has not answered yet and so is not ours to use."""
        self._planned = False
        self._item: Interface | None = None
        self._settled: Interface | None = None
        self._failing = False
        self._downed = False
        """The interface has been set down for the plan as it is: who sets it up is not us."""
        self._taken = 0
        """A port that somebody else had when it was tried last."""
        self._holder = ports.Holder()
        self._clock: Callable[[], float] = time.monotonic
        self._backoff: Backoff[str] = Backoff()
        self._vanished: list[float] = []
        self._steps = Steps(config.interface)
        self.open_device: Callable[[LinkInfo], Device] = open_device
        """The device behind a link that is WireGuard's, or a program's that serves it."""
        self.port_is_free: Callable[[int], bool] = lambda port: ports.is_free(port)

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        self._planned = True
        item = upserts.get(INTERFACE)
        if isinstance(item, Interface):
            self._item = item
        elif INTERFACE in removals:
            self._item = None
        else:
            return
        self._steps.again(SETTINGS, LINK, DOWN)
        self._taken, self._downed = 0, False

    def load(self) -> None:
        """Read the device again, if there is one. One that has gone is for ``apply``, which makes another."""
        link = self._link()
        if self.device is not None and link is not None and link.number == self._number:
            self.state = self.device.read()

    def adopt_existing(self) -> None:
        """Adopt the interface if it is there, and make nothing: a clean-up may come before any pass.

        Raises TemporaryError.
        """
        link = self._link()
        if link is not None and self.device is None:
            self._adopt(link.number, self._find(link))
            self._roles.assign("wireguard", link)

    def drifted(self) -> bool:
        """Whether what ``load`` read last, or the link, is not as the plan has it."""
        link, item = self._link(), self._item
        if self.device is None or link is None:
            return True
        if self.state.private_key != self._key:
            return True
        return item is not None and (
            self.state.listen_port != item.listen_port or link.mtu != item.mtu or link.up != item.up
        )

    def apply(self) -> list[Outcome]:
        repair = self._settled is not None and self._settled == self._item
        try:
            made = self._ensure()
        except Starting:
            return []
        except TemporaryError as e:
            if self._failing and isinstance(e, NotYet):
                return []
            self._failing = True
            return [Outcome(INTERFACE, f"{self._interface}: {e}", waits=isinstance(e, Waits))]
        outcomes = [Outcome(INTERFACE, repair=made and repair)] if made or self._failing else []
        self._failing = False
        if made:
            self._steps.again(SETTINGS, LINK, DOWN)
        outcomes += self._set_up(self.fights if repair and not made else None)
        self._roles.assign("wireguard", self._link())
        return outcomes

    def _set_up(self, fights: Fights | None) -> list[Outcome]:
        """Key and port, and only then the link. ``fights`` is given where a change is a repair."""
        now = self._clock()
        if self._taken and self.port_is_free(self._taken):
            self._taken = 0
            self._steps.again(SETTINGS, LINK)
        outcomes = self._steps.take(SETTINGS, self._configuration(), now, fights)
        if self._configuration() is None:
            outcomes += self._steps.take(LINK, self._link_change(), now, fights)
            if self._link_change() is None:
                self._settled = self._item
        elif fights and self._link_change() is not None:
            fights.may_repair(LINK, now)  # it waits for the settings; a fight over it is not over
        return outcomes

    def prune(self) -> list[Outcome]:
        """A node that does not lead has its interface down."""
        link = self._link()
        wanted = self._item is not None and self._item.up
        if not self._planned or wanted or link is None or self.device is None or not link.up:
            return self._steps.take(DOWN, None, self._clock())
        change = partial(self._set_down, link.number)
        return self._steps.take(DOWN, change, self._clock(), self.fights if self._downed else None)

    def _set_down(self, number: int) -> None:
        self._change(pack_link(number, up=False))
        self._downed = True

    def clean_up(self) -> list[Outcome]:
        """Set it down; delete it if the flags say so."""
        self._item, self._planned = None, True
        outcomes = self.prune()
        link = self._link()
        if self._config.clean_up_interface and link is not None and self.device is not None:
            if self.device.kind == "userspace":
                userspace.end(self._interface)
            try:
                self._delete(link.number, patience=_VANISH if self.device.kind == "userspace" else 0)
            except TemporaryError as e:
                outcomes.append(Outcome(INTERFACE, f"{self._interface}: {e}"))
        return outcomes

    def _delete(self, number: int, patience: float) -> None:
        """Delete the link, unless it goes by itself within ``patience`` seconds."""
        end = self._clock() + patience
        self._host.load()
        while self._clock() < end and number in self._host.links:
            time.sleep(0.02)
            self._host.load()
        if number in self._host.links:
            (error,) = self._netlink.change([Request(RTM_DELLINK, 0, pack_link(number))])
            if error is not None and error.errno != errno.ENODEV:
                raise error

    def _link(self) -> LinkInfo | None:
        return self._host.named(self._interface)

    def _ensure(self) -> bool:
        """Make or adopt the interface. True if that had to be done. Raises TemporaryError."""
        link = self._link()
        if link is None:
            if self.device is not None:
                self._note_vanishing()
            self._drop_device()
            link = self._make()
        if self.device is None or link.number != self._number:
            if self._candidate is None or self._candidate[0] != link.number:
                self._drop_device()
                self._candidate = link.number, self._find(link)
            self._adopt(link.number, self._candidate[1])
            return True
        return False

    def _drop_device(self) -> None:
        for device in (self.device, self._candidate and self._candidate[1]):
            if device is not None:
                device.close()
        self.device, self.state, self._number, self._candidate = None, DeviceState(), 0, None
        self._roles.assign("wireguard", None)

    def _make(self) -> LinkInfo:
        """Create the interface in the kernel, or have wireguard-go started. Raises while it is not there."""
        if not self._config.create_interface:
            raise Waits("the interface does not exist, and --create-interface=false: waiting for it")
        if self._launcher.starting:
            raise Starting
        now = self._clock()
        if not self._backoff.due(INTERFACE, now):
            raise NotYet("the interface is not there, or vanished again; it will be made again soon")
        self._backoff.failed(INTERFACE, now)
        try:
            self._change(pack_link(name=self._interface, kind="wireguard"), NLM_F_CREATE | NLM_F_EXCL)
        except KernelError as e:
            if e.errno == errno.EEXIST:
                raise self._name_taken(e) from e
            if e.errno != errno.EOPNOTSUPP:
                raise
            self._launcher.start()
            raise Starting from e
        link = self._link()
        if link is None:
            raise TemporaryError("the interface vanished as soon as it was made")
        return link

    def _name_taken(self, error: KernelError) -> TemporaryError:
        """The error to raise where the kernel has the name, and no interface in the list is called so."""
        try:
            link = self._host.links.get(socket.if_nametoindex(self._interface))
        except OSError:
            link = None
        if link is None:
            return error  # it came meanwhile, and is found in the next pass
        return TemporaryError(
            f"this is an alternative name of {link.name}: give another --interface, or remove it: "
            f"ip link property del dev {link.name} altname {self._interface}"
        )

    def _note_vanishing(self) -> None:
        """One that worked is made again at once, but not one that vanishes again and again."""
        now = self._clock()
        self._vanished = [t for t in self._vanished if now - t < _FRENZY] + [now]
        if len(self._vanished) <= _SPARE:
            self._backoff.worked(INTERFACE)

    def lasted(self) -> None:
        """The interface has been well for a while: if it vanishes now, it is made again at once."""
        if self.device is not None:
            self._backoff.worked(INTERFACE)

    def _find(self, link: LinkInfo) -> Device:
        """The device behind an interface that exists, if it is WireGuard's. Raises TemporaryError."""
        if link.kind not in ("wireguard", "tun"):
            kind = f"of the kind {link.kind}" if link.kind else "a hardware interface"
            raise Waits(f"an interface of this name exists, is {kind} and not WireGuard's: left alone")
        if link.kind == "tun" and self._launcher.starting:
            raise Starting
        return self.open_device(link)

    def _adopt(self, number: int, device: Device) -> None:
        """Take ``device`` for ours, once it answers. Raises TemporaryError; it is kept meanwhile."""
        self.state = device.read()
        self.device, self._number, self._candidate = device, number, None

    def _configuration(self) -> Callable[[], None] | None:
        """How to set key and port; None if that is not needed."""
        device, item = self.device, self._item
        key = self._key if self.state.private_key != self._key else None
        port = item.listen_port if item and item.listen_port != self.state.listen_port else None
        if device is None or (key is None and port is None):
            return None
        return partial(self._configure, device, key, port)

    def _configure(self, device: Device, key: PrivateKey | None, port: int | None) -> None:
        """A device that is told a port which is taken lets go of the one that it has: look first."""
        if port is not None and not self.port_is_free(port):
            raise self._port_taken(port)
        try:
            device.configure(key, port)
        except DeviceRefused as e:
            if port is not None and e.errno == errno.EADDRINUSE:
                raise self._port_taken(port) from e
            raise
        self.state = device.read()
        link = self._link()
        if port and link and link.up and self.port_is_free(port):
            # wireguard-go could not have its port when the link went up, and is down since
            self._change(pack_link(link.number, up=False))

    def _link_change(self) -> Callable[[], None] | None:
        """How to set the MTU, and up; None if that is not needed. Down is for ``prune``."""
        link, item = self._link(), self._item
        if link is None or item is None:
            return None
        mtu = item.mtu if item.mtu != link.mtu else 0
        up = True if item.up and not link.up else None
        if not mtu and up is None:
            return None
        return partial(self._set_link, pack_link(link.number, mtu=mtu, up=up), item.listen_port)

    def _set_link(self, body: bytes, port: int) -> None:
        """The kernel's device has its port from when it goes up, wireguard-go's from when it is told."""
        try:
            self._change(body)
        except KernelError as e:
            if e.errno == errno.EADDRINUSE:
                raise self._port_taken(port) from e
            raise

    def _port_taken(self, port: int) -> TemporaryError:
        self._taken = port
        holders = self._holder.of(port)
        names = " and ".join(holder.name for holder in holders) or "a socket that is gone by now"
        remedies = "".join(f"; {holder.remedy}" for holder in holders)
        return TemporaryError(f"UDP port {port} is taken by {names} (EADDRINUSE){remedies}")

    def _change(self, body: bytes, flags: int = 0) -> None:
        (error,) = self._netlink.change([Request(RTM_NEWLINK, flags, body)])
        if error is not None:
            raise error
        self._host.load()
