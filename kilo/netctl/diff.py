"""What netctl would change on this host, with nothing changed: for ``kg plan --diff``.

The reconcilers of the agent make their passes, with stand-ins for all that writes (kilo.netctl.rehearsal,
kilo.netctl.firewall.rehearsed), so that what is found is what the agent would do. It takes no claim and no
lock, and starts nothing. Called by kilo.cli.diff.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from kilo.bus import Loop
from kilo.config import Config
from kilo.log import Logger
from kilo.model.host import HostFacts, WireGuardPeerState
from kilo.model.plan import PlanItem
from kilo.netctl import key, ports, show
from kilo.netctl.facts import host_facts, resolve
from kilo.netctl.failures import HOST, INTERFACE, all_of
from kilo.netctl.firewall import Firewall
from kilo.netctl.firewall.rehearsed import RehearsedAccess
from kilo.netctl.firewall.selected import SelectedBackend
from kilo.netctl.netlink.messages import LinkInfo, RouteInfo, RuleInfo
from kilo.netctl.passes import Passes
from kilo.netctl.plane import Plane
from kilo.netctl.reconcile import Delta
from kilo.netctl.rehearsal import NOT_YET, RehearsedDevice, RehearsedNetlink
from kilo.netctl.show import Difference
from kilo.netctl.userspace import Launcher
from kilo.netctl.validate import Validator
from kilo.netctl.wireguard.device import PeerState
from kilo.netctl.wireguard.held import held_key, open_device
from kilo.netctl.wireguard.peers import Actual
from kilo.netctl.wireguard.watch import state_of
from kilo.sandbox.status import read_status
from kilo.worker import Reporter

V = TypeVar("V")
MOST_PASSES = 3
"""The first finds the device and its peers, the next goes by what the guard makes of these."""
PATIENCE = 60.0


class Found(NamedTuple):
    """``notes``: what would be left undone, and why. ``unknown``: what could not be told, and why."""

    differences: list[Difference]
    notes: list[str]
    unknown: list[str]


def may_look() -> bool:
    """Whether this process may ask the kernel for all that there is to compare."""
    return "NET_ADMIN" in read_status().effective


class Ledger(Generic[V]):
    """Keeps what becomes of the objects of ``delta``."""

    def __init__(self, delta: Delta[str, V]) -> None:
        self._objects: dict[str, tuple[V | None, V | None]] = {}
        delta.on_done = self._note

    def _note(self, key: str, before: V | None, after: V | None) -> None:
        first, _ = self._objects.get(key, (before, None))
        self._objects[key] = first, after

    def changes(self) -> Iterator[tuple[str, V | None, V | None]]:
        """Key, what it was before its first change, and what it is after the last, if that is another."""
        for name, (before, after) in sorted(self._objects.items()):
            if before != after:
                yield name, before, after


class Rehearsal:
    """A host that is looked at. ``key_file``: the private key; by default the agent's own, else the device's.

    Raises TemporaryError if the kernel does not answer, PermanentError if the key cannot be used.
    """

    def __init__(self, config: Config, key_file: str = "") -> None:
        self._config = config
        self._netlink = netlink = RehearsedNetlink()
        self._host = host = netlink.host
        host.load()
        host.load_default()
        path = Path(key_file) if key_file else key.path_in(config.state_dir)
        self._key = key.load(path) or held_key(config.interface, netlink) or key.new_key()
        self._access = RehearsedAccess()
        self._device = RehearsedDevice(None)
        log = Logger("netctl", "none")
        self._report = Reporter("netctl", log)
        self._loop = loop = Loop()
        backend = SelectedBackend(config.firewall, log, self._access.ipset, access=self._access)
        launcher = Launcher(loop, config.interface, lambda error: None)
        self._plane = plane = Plane(
            config, self._key, netlink, host, launcher, Firewall(config, log, backend)
        )
        plane.interface.open_device = self._open
        plane.earlier.has_successor = lambda: (
            config.create_interface or host.named(config.interface) is not None
        )
        plane.earlier.open_device = lambda link: RehearsedDevice(open_device(link))
        plane.interface.port_is_free = lambda port: (
            port in plane.earlier.released or ports.is_unheard_of(port)
        )
        self._passes = passes = Passes(loop, self._report, log, plane.order, plane.interface, plane.fights)
        passes.take, passes.prepare, passes.after = plane.take, plane.prepare, self._after
        plane.reread = passes.reread
        self._peers: Ledger[Actual] = Ledger(plane.peers.delta)
        self._routes: Ledger[RouteInfo] = Ledger(plane.routes.delta)
        self._rules: Ledger[RuleInfo] = Ledger(plane.rules.delta)
        self._links = dict(host.links)
        self._addresses = _texts(host.addresses, host.links)
        self._made = 0

    def close(self) -> None:
        self._plane.firewall.close()
        self._device.close()
        self._netlink.close()
        self._loop.close()

    # What a plan can be made from.

    def facts(self) -> HostFacts:
        """What netctl tells the planner of this host."""
        link = self._host.named(self._config.interface)
        kind = {"wireguard": "kernel", "tun": "userspace"}.get(link.kind if link else "", "")
        return host_facts(self._host, self._config, self._key.public(), resolve(self._config.hostname), kind)

    def peers(self) -> dict[str, WireGuardPeerState]:
        """Those that the device has, by public key. Raises TemporaryError if it does not answer."""
        self._plane.interface.adopt_existing()
        return {k: state_of(k, peer) for k, peer in self._plane.interface.state.peers.items()}

    def routes(self) -> set[str]:
        """The plan keys of the routes that the kernel has of ours. Raises TemporaryError."""
        self._plane.routes.load()
        return set(self._plane.routes.delta.actual)

    # The passes.

    def run(self, items: Mapping[str, PlanItem]) -> Found:
        """What would be changed to have the plan ``items``. To be called once."""
        validator = Validator(self._config.subnet)
        sound, _ = validator.sift(items, ())
        notes = [f"{name} is refused: {reason}" for name, reason in validator.refused.items()]
        if "interface" in validator.refused:
            return Found([], notes, ["a plan without a sound interface is none: all stays as it is"])
        self._passes.plan(sound, (), usable=True)
        self._loop.run_for(PATIENCE)
        failing = {name: failure.message for name, failure in self._report.failing.items()}
        unknown = [failing.pop(name) for name in list(failing) if self._is_blind(name)]
        if not self._made:
            unknown.append(f"not done within {PATIENCE:.0f} s")
        return Found(show.in_order(self._differences()), notes + list(failing.values()), unknown)

    def _is_blind(self, name: str) -> bool:
        """Whether a failure means that something could not be read, and not that it would not be changed."""
        if name == INTERFACE:
            link = self._host.named(self._config.interface)
            return link is not None and link.kind in ("wireguard", "tun")
        return name == HOST or name in {all_of(reconciler.name) for reconciler in self._plane.order}

    def _after(self, settled: bool) -> None:
        self._made += 1
        if self._made < MOST_PASSES and self._plane.observe(time.monotonic(), time.time()):
            self._passes.request()
        else:
            self._loop.stop()

    def _open(self, link: LinkInfo) -> RehearsedDevice:
        self._device.close()
        self._device = RehearsedDevice(open_device(link) if link.number < NOT_YET else None)
        return self._device

    # What has come of them.

    def _differences(self) -> Iterator[Difference]:
        host = self._host
        for number, link in host.links.items():
            if link != self._links.get(number):
                yield show.link(self._links.get(number), link)
        yield from show.device(self._config.interface, self._device.before, self._device.after)
        addresses = _texts(host.addresses, host.links)
        yield from (Difference("-", "address", text) for text in sorted(self._addresses - addresses))
        yield from (Difference("+", "address", text) for text in sorted(addresses - self._addresses))
        yield from (Difference(sign, "firewall", what) for sign, what in self._access.stage.lines())
        names = {number: link.name for number, link in host.links.items()}
        for name, peer, wanted in self._peers.changes():
            yield show.peer(name.removeprefix("peer/"), _state(peer), _state(wanted))
        yield from (show.route(before, after, names) for _, before, after in self._routes.changes())
        yield from (show.rule(before, after) for _, before, after in self._rules.changes())


def _texts(addresses: Mapping[int, Mapping[str, object]], links: Mapping[int, LinkInfo]) -> set[str]:
    return {f"{a} dev {links[number].name}" for number in addresses.keys() & links for a in addresses[number]}


def _state(peer: Actual | None) -> PeerState | None:
    return peer if isinstance(peer, PeerState) else None
