"""The reconcilers of one host, in the order of a pass, and what they need of one another.

What the worker drives with the kernel behind it, and kilo.netctl.diff with one that it only reads: that
both find the same differences is because there is one such wiring. Runs on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from kilo.config import Config
from kilo.model.net import ip_of
from kilo.model.plan import Interface, PlanItem
from kilo.netctl.addresses import Addresses
from kilo.netctl.earlier import EarlierInterface
from kilo.netctl.fights import Fights
from kilo.netctl.firewall import Firewall
from kilo.netctl.guard import Guard
from kilo.netctl.host import Host, Roles
from kilo.netctl.interface import WireGuardInterface
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.socket import Netlink
from kilo.netctl.reconcile import Reconciler
from kilo.netctl.routes import Routes
from kilo.netctl.rules import Rules
from kilo.netctl.tunnel import TunnelDevice
from kilo.netctl.unused import UnusedTunnel
from kilo.netctl.userspace import Launcher
from kilo.netctl.wireguard.peers import Peers


class Plane:
    """``take`` and ``prepare`` are for kilo.netctl.passes, under these names.

    ``drain`` takes in what the kernel has said of the host; ``reread`` has a reconciler read what there is
    before its next step.
    """

    def __init__(
        self,
        config: Config,
        key: PrivateKey,
        netlink: Netlink,
        host: Host,
        launcher: Launcher,
        firewall: Firewall,
    ) -> None:
        self.host = host
        self.roles = roles = Roles()
        self.guard = Guard()
        self.fights = Fights()
        self.interface = WireGuardInterface(config, key, netlink, host, roles, launcher)
        self.earlier = EarlierInterface(config.interface, key, netlink, host)
        self.tunnel = TunnelDevice(netlink, host, roles, config.compatibility)
        self.addresses = Addresses(netlink, host, roles)
        self.firewall = firewall
        self.unused = UnusedTunnel(netlink, host, roles)
        self.peers = Peers(lambda: self.interface.device)
        self.routes = Routes(netlink, roles, self.guard.verdict, self.guard.name_of)
        self.rules = Rules(netlink, config.interface)
        self.order: list[Reconciler] = [
            self.earlier,
            self.interface,
            self.tunnel,
            self.addresses,
            self.firewall,
            self.unused,
            self.peers,
            self.routes,
            self.rules,
        ]
        for owner in (self.interface, self.tunnel, self.addresses, self.peers, self.routes, self.rules):
            owner.fights = self.fights
        self.drain: Callable[[], None] = lambda: None
        self.reread: Callable[[Sequence[Reconciler]], None] = lambda reconcilers: None
        self.device_seen: object = None
        """The device whose peers are known."""
        self.device_since = 0.0
        self._roles_seen = -1
        self._private_ip = ""
        self._guard_moved = False

    def take(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        """What is no reconciler's of the plan that a pass begins with."""
        if "interface" in removals:
            self._private_ip = ""
        if isinstance(item := upserts.get("interface"), Interface):
            self._private_ip = ip_of(item.private_ip) if item.private_ip else ""
        self._guard_moved = self.guard.update(upserts, removals, time.monotonic()) or self._guard_moved

    def prepare(self, reconciler: Reconciler) -> None:
        """What a step needs to know that an earlier step, or the host, has changed."""
        if reconciler is self.interface:
            self.roles.assign("private", self.host.holder(self._private_ip) if self._private_ip else None)
        elif reconciler is self.addresses:
            self.drain()
            self.addresses.resolve()
            self.addresses.load()
        elif reconciler is self.firewall:
            self._prepare_routes()
            self.firewall.keep_guard(self.unused.is_open())
            self.firewall.leave_out(self.routes.absent_networks())
        elif reconciler is self.routes:
            self._look_for_peers()
            self._prepare_routes()
        elif reconciler is self.peers and self.device_seen is not self.interface.device:
            self.device_seen = self.interface.device
            self.device_since = time.monotonic()
            self.peers.loaded(self.interface.state.peers)

    def _look_for_peers(self) -> None:
        """A route never stands without its peer; without an answer of the device there is no news of it."""
        if self.interface.device is not None and self.device_seen is self.interface.device:
            self._guard_moved |= self.guard.lacks(self.peers.lacking(), time.monotonic())

    def _prepare_routes(self) -> None:
        moved = self._roles_seen != self.roles.generation
        if moved or self._guard_moved:
            self._roles_seen, self._guard_moved = self.roles.generation, False
            self.routes.resolve()
        if moved:
            self.routes.retry()
            self.reread([self.routes])

    def observe(self, now: float, wall: float) -> bool:
        """Have the guard look at the peers as they are; whether that means something else for a route.

        ``now`` in monotonic seconds, ``wall`` in Unix seconds.
        """
        if not self.guard.observe(self.peers.actual, now, wall):
            return False
        self.routes.resolve()
        return True
