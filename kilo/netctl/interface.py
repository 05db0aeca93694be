"""The WireGuard interface: that it exists, has our key and port, its MTU, and is up or down.

An interface of that name that is not WireGuard's is reported and not touched. One that an earlier
run made is adopted with all that is in it. It goes up only once key and port are set.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Mapping

from kilo.config import Config
from kilo.errors import TemporaryError
from kilo.model.plan import Interface, PlanItem
from kilo.netctl import userspace
from kilo.netctl.host import Host, Roles
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.messages import RTM_DELLINK, RTM_NEWLINK, LinkInfo, pack_link
from kilo.netctl.netlink.socket import NLM_F_CREATE, NLM_F_EXCL, KernelError, Netlink, Request
from kilo.netctl.reconcile import Backoff, Outcome
from kilo.netctl.userspace import Launcher
from kilo.netctl.wireguard.device import Device, DeviceState
from kilo.netctl.wireguard.kernel import Kernel
from kilo.netctl.wireguard.uapi import Userspace

KEY = "interface"
_VANISH = 2.0


class Waits(TemporaryError):
    """Nothing failed, but the interface is not there yet."""


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
        self._planned = False
        self._item: Interface | None = None
        self._settled: Interface | None = None
        self._failing = False
        self._clock: Callable[[], float] = time.monotonic
        self._backoff: Backoff[str] = Backoff()

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        self._planned = True
        item = upserts.get(KEY)
        if isinstance(item, Interface):
            self._item = item
        elif KEY in removals:
            self._item = None

    def load(self) -> None:
        """Read the device again, if there is one."""
        if self.device is not None:
            self.state = self.device.read()

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
        try:
            changed = self._ensure()
        except Starting:
            return []
        except TemporaryError as e:
            self._failing = True
            return [Outcome(KEY, f"{self._interface}: {e}", waits=isinstance(e, Waits))]
        repair = self._settled is not None and self._settled == self._item
        self._settled = self._item
        outcome = [Outcome(KEY, repair=changed and repair)] if changed or self._failing else []
        self._failing = False
        return outcome

    def prune(self) -> list[Outcome]:
        """A node that does not lead has its interface down."""
        link = self._link()
        wanted = self._item is not None and self._item.up
        if not self._planned or wanted or link is None or self.device is None or not link.up:
            return []
        try:
            self._change(pack_link(link.number, up=False))
        except TemporaryError as e:
            return [Outcome(f"{KEY}/down", f"{self._interface}: {e}")]
        return [Outcome(f"{KEY}/down")]

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
                outcomes.append(Outcome(KEY, f"{self._interface}: {e}"))
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
        """Make everything as it should be. True if anything had to be changed. Raises TemporaryError."""
        changed = False
        link = self._link()
        if link is None:
            self._drop_device()
            link = self._make()
            changed = True
        if self.device is None or link.number != self._number:
            self._drop_device()
            self._adopt(link)
            changed = True
        changed = self._configure() or changed
        if self._item is not None:
            changed = self._set_link(link, self._item) or changed
        self._roles.assign("wireguard", self._link())
        return changed

    def _drop_device(self) -> None:
        if self.device is not None:
            self.device.close()
        self.device, self.state, self._number = None, DeviceState(), 0
        self._roles.assign("wireguard", None)

    def _make(self) -> LinkInfo:
        """Create the interface in the kernel, or have wireguard-go started. Raises while it is not there."""
        if not self._config.create_interface:
            raise Waits("the interface does not exist, and --create-interface=false: waiting for it")
        if self._launcher.starting:
            raise Starting
        now = self._clock()
        if not self._backoff.due(KEY, now):
            raise Waits("the interface is not there, or vanished again; it will be made again soon")
        self._backoff.failed(KEY, now)
        try:
            self._change(pack_link(name=self._interface, kind="wireguard"), NLM_F_CREATE | NLM_F_EXCL)
        except KernelError as e:
            if e.errno != errno.EOPNOTSUPP:
                raise
            self._launcher.start()
            raise Starting from e
        link = self._link()
        if link is None:
            raise TemporaryError("the interface vanished as soon as it was made")
        return link

    def lasted(self) -> None:
        """The interface has been well for a while: if it vanishes now, it is made again at once."""
        if self.device is not None:
            self._backoff.worked(KEY)

    def _adopt(self, link: LinkInfo) -> None:
        """Take an interface that exists for ours, if it is WireGuard's."""
        if link.kind == "wireguard":
            device: Device = Kernel(self._interface)
        elif link.kind == "tun":
            if self._launcher.starting:
                raise Starting
            device = Userspace(self._interface)
        else:
            kind = f"of the kind {link.kind}" if link.kind else "a hardware interface"
            raise TemporaryError(
                f"an interface of this name exists, is {kind} and not WireGuard's: left alone"
            )
        try:
            self.state = device.read()
        except TemporaryError:
            device.close()
            raise
        self.device, self._number = device, link.number

    def _configure(self) -> bool:
        """Key and port. True if one of them had to be set."""
        if self.device is None:
            return False
        item = self._item
        key = self._key if self.state.private_key != self._key else None
        port = item.listen_port if item and item.listen_port != self.state.listen_port else None
        if key is None and port is None:
            return False
        self.device.configure(key, port)
        self.state = self.device.read()
        return True

    def _set_link(self, link: LinkInfo, item: Interface) -> bool:
        """MTU, and up; down is for ``prune``. True if something had to be set."""
        mtu = item.mtu if item.mtu != link.mtu else 0
        up = True if item.up and not link.up else None
        if not mtu and up is None:
            return False
        self._change(pack_link(link.number, mtu=mtu, up=up))
        return True

    def _change(self, body: bytes, flags: int = 0) -> None:
        (error,) = self._netlink.change([Request(RTM_NEWLINK, flags, body)])
        if error is not None:
            raise error
        self._host.load()
