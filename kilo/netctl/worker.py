"""The netctl worker: wires the plan, the kernel's events and the reconcilers together.

The only worker that changes the host's network, and the only one that has the private key. It
reports the host's facts and WireGuard's state. See docs/design/netctl.md.
"""

from __future__ import annotations

import time
from pathlib import Path

from kilo.bus import HELD, HOST, PLAN, WIREGUARD, Change
from kilo.errors import TemporaryError
from kilo.model.plan import PlanItem, Summary
from kilo.netctl import probe
from kilo.netctl.conntrack import StaleFlows
from kilo.netctl.facts import HostnameIPs, host_facts
from kilo.netctl.failures import DEVICE
from kilo.netctl.firewall import Firewall
from kilo.netctl.host import Host
from kilo.netctl.key import load_or_create
from kilo.netctl.monitor import Monitor
from kilo.netctl.netlink.socket import Netlink
from kilo.netctl.passes import Passes
from kilo.netctl.plane import Plane
from kilo.netctl.progress import Progress
from kilo.netctl.sole import Claim
from kilo.netctl.userspace import Launcher
from kilo.netctl.validate import Validator
from kilo.netctl.wireguard.held import held_key
from kilo.netctl.wireguard.watch import PeerStates
from kilo.worker import Context

POLL = 0.5
"""Seconds between two looks at the WireGuard device: what is changed there by hand is mended within 1 s."""
SETTLE = 0.03
"""Seconds between an event and the pass that answers it, so that a burst makes one pass."""
LOST_GAP = 1.0
"""Seconds between two readings of everything, where events are lost all the time."""
RESOLVE_PATIENCE = 2.0
RESOLVE_AGAIN = 300.0
LASTING = 60.0
NAMED = 10
ANSWERED_WITHIN = 0.3
"""s after which it is looked whether a probe was answered; later answers are seen by the next."""
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class NetctlWorker:
    """See the module's text."""

    poll_period = POLL

    def __init__(self, context: Context) -> None:
        self._context = context
        self._config = config = context.config
        self._report = context.report
        self._loop = context.loop
        self._claim = Claim(config.interface, context.log)
        self._netlink = netlink = Netlink()
        self._key = load_or_create(config.state_dir, lambda: held_key(config.interface, netlink), context.log)
        self._public_key = self._key.public()
        self._host = host = Host(netlink)
        self._validator = Validator(config.subnet)
        self._launcher = Launcher(context.loop, config.interface, self._on_launched)
        self._firewall = Firewall(config, context.log)
        self._plane = plane = Plane(config, self._key, netlink, host, self._launcher, self._firewall)
        self._roles, self._guard, self._fights = plane.roles, plane.guard, plane.fights
        self._interface, self._peers, self._routes = plane.interface, plane.peers, plane.routes
        self._flows = StaleFlows(context.loop, netlink, host, self._roles, self._firewall, context.log)
        self._flows.gauges = context.report.gauges
        self._passes = Passes(
            context.loop, context.report, context.log, plane.order, plane.interface, plane.fights
        )
        self._progress = Progress()
        self._monitor = Monitor(host.take, plane.routes.take, plane.rules.take)
        self._names = HostnameIPs(config.hostname, context.loop.post, self._on_resolved)
        self._facts = context.publish(HOST)
        self._states = PeerStates(context.publish(WIREGUARD))
        self._held = context.publish(HELD)
        self._resolved = False
        self._settling = False
        self._host_known = True
        self._lost = False
        self._read_at = float("-inf")

    def start(self) -> None:
        passes, monitor, plane = self._passes, self._monitor, self._plane
        passes.before, passes.take = self._before, plane.take
        passes.prepare, passes.after = plane.prepare, self._after
        plane.drain, plane.reread = monitor.drain, passes.reread
        monitor.on_host, monitor.on_objects = self._on_host, self._settle
        monitor.on_default, monitor.on_lost = self._on_default, self._on_lost
        monitor.watch(self._loop)
        self._firewall.watch(self._loop, self._on_firewall)
        self._host.load()
        self._host.load_default()
        self._context.subscribe(PLAN, self._on_plan)
        self._names.ask()
        self._loop.call_later(RESOLVE_PATIENCE, self._on_resolved)
        self._loop.call_every(RESOLVE_AGAIN, self._names.ask)
        self._loop.call_every(self.poll_period, self._poll)
        self._loop.call_every(self._config.resync_period, self._resync)
        self._loop.call_every(1.0, self._watch_over)
        self._check_forwarding()
        passes.request()

    def stop(self, clean_up: bool) -> None:
        """Leave everything as it is; or, with ``clean_up`` and where the flags say so, take it away.

        Raises TemporaryError if something is left.
        """
        left = self._clean_up() if clean_up and self._config.clean_up else []
        self._monitor.close()
        self._firewall.close()
        self._flows.close()
        if self._interface.device is not None:
            self._interface.device.close()
        self._netlink.close()
        if left:
            more = f"; and {len(left) - NAMED} more" if len(left) > NAMED else ""
            raise TemporaryError(f"not all was cleaned up: {'; '.join(left[:NAMED])}{more}")

    def _clean_up(self) -> list[str]:
        """What could not be removed, and why."""
        left = []
        try:
            self._host.load()
            self._plane.unused.look()
            self._interface.adopt_existing()
        except TemporaryError as e:
            left.append(str(e))
        for reconciler in reversed(self._plane.order):
            try:
                left += [outcome.error for outcome in reconciler.clean_up() if outcome.error]
            except TemporaryError as e:
                left.append(f"{reconciler.name}: {e}")
        return left

    # The plan.

    def _on_plan(self, change: Change[PlanItem]) -> None:
        sound, gone = self._validator.sift(change.upserts, change.removals)
        for key in change.removals:
            self._report.mend(f"plan/{key}")
        for key in change.upserts:
            if key in self._validator.refused:
                self._report.fail(f"plan/{key}", f"{key} refused: {self._validator.refused[key]}", "plan")
            else:
                self._report.mend(f"plan/{key}")
        for item in sound.values():
            if isinstance(item, Summary):
                self._progress.heard(item.generation, time.time())
        refused = "interface" in self._validator.refused and not self._validator.accepts("interface")
        self._passes.plan(sound, gone, usable=not refused)

    # A pass.

    def _before(self) -> None:
        self._progress.taken()
        if not self._host_known:
            self._host.load()
            self._host.load_default()
            self._host_known = True
        self._monitor.drain()

    def _after(self, settled: bool) -> None:
        device = self._interface.device
        self._report.info["interface"] = self._config.interface
        self._report.info["wireguard"] = device.kind if device else ""
        self._report.info["firewall"] = self._firewall.told
        self._check_pods()
        gauges = self._report.gauges
        told = gauges.get("applied_generation"), self._report.phase
        gauges["repairs_total"] = self._passes.repairs
        gauges["routes"] = len(self._routes.delta.actual)
        self._flows.after_pass(self._routes.moved)
        self._routes.moved.clear()
        gauges["wireguard_peers"] = len(self._peers.actual)
        gauges["fights"] = len(self._passes.fought)
        self._progress.ended(settled and device is not None, self._report.failing, time.time())
        self._progress.write(gauges, self._report.info)
        if device is None:
            gauges.pop("applied_generation", None)  # without the device nothing is applied any more
        self._publish_held()
        if device is not None:
            self._report.ready()
            if len(self._states) != len(self._peers.actual) and DEVICE not in self._report.failing:
                self._loop.call_soon(self._poll)
        self._publish_facts()
        if told != (gauges.get("applied_generation"), self._report.phase):
            self._context.beat()  # whoever waits for this need not wait for the next heartbeat

    # What the kernel says.

    def _on_host(self) -> None:
        """With an address, or a link that goes down, the kernel drops routes and does not say so; and what
        failed for want of an address that went is not to wait, if it has come back."""
        if self._host.touched & self._roles.numbers():
            self._passes.reread([self._routes])
            self._routes.retry()
        self._host.touched.clear()
        self._publish_facts()
        self._settle()

    def _settle(self) -> None:
        if not self._settling:
            self._settling = True
            self._loop.call_later(SETTLE, self._settled)

    def _settled(self) -> None:
        self._settling = False
        self._passes.request()

    def _on_firewall(self) -> None:
        self._passes.reread([self._firewall])
        self._settle()

    def _on_default(self) -> None:
        try:
            self._host.load_default()
        except TemporaryError:
            self._host_known = False  # the next pass tries again, and says what fails
            self._passes.request()
        self._publish_facts()

    def _on_lost(self) -> None:
        """The kernel had more to say than we could hear: read everything again, once a second."""
        self._report.count("monitor")
        if not self._lost:
            self._lost = True
            self._loop.call_later(max(0.0, self._read_at + LOST_GAP - time.monotonic()), self._read_all)

    def _read_all(self) -> None:
        self._lost, self._read_at = False, time.monotonic()
        self._context.log.warn("events of the kernel were lost; reading everything again")
        self._resync()

    def _on_launched(self, error: str) -> None:
        if error:
            self._report.fail("wireguard-go", error)
        else:
            self._report.mend("wireguard-go")
        self._passes.request()

    # What is looked at now and then.

    def _resync(self) -> None:
        """Read all that there is, and compare."""
        self._host_known = False
        self._passes.reread()
        self._passes.request()

    def _poll(self) -> None:
        """What the kernel sends no events for: WireGuard's peers, its key and port; forwarding."""
        self._check_forwarding()
        self._claim.forget_callers()
        device = self._interface.device
        if device is None:
            return
        try:
            self._interface.load()
        except TemporaryError as e:
            self._report.fail(DEVICE, f"{self._config.interface}: {e}")
            self._passes.request()
            return
        if DEVICE in self._report.failing:
            self._report.mend(DEVICE)
            self._passes.request()
        now = time.monotonic()
        if self._plane.device_seen is not device:
            return
        if now - self._plane.device_since > LASTING:
            self._interface.lasted()
        state = self._interface.state
        self._states.publish(state.peers, now)
        self._peers.loaded(state.peers)
        if self._plane.observe(now, time.time()):
            self._passes.request()
        if self._peers.delta.pending or self._interface.drifted():
            self._passes.request()

    def _watch_over(self) -> None:
        """What carries delicate routes is asked whether it works, and time is told to the guard."""
        if not self._guard.watching:
            return
        now = time.monotonic()
        asked = self._guard.due(now, time.time())
        for peer in asked:
            if ip := probe.target(peer, self._config.subnet):
                probe.ask(self._config.interface, ip)
        if asked:
            self._loop.call_later(ANSWERED_WITHIN, self._poll)
        if self._guard.tick(now):
            self._routes.resolve()
            self._passes.request()

    def _check_forwarding(self) -> None:
        """Without forwarding nothing of a pod's leaves the host; switching it on is the host's decision."""
        try:
            forwards = FORWARDING.read_text().strip() != "0"
        except OSError:
            return
        if forwards:
            self._report.mend("ip_forward")
        else:
            self._report.fail(
                "ip_forward",
                f"{FORWARDING} is 0: the host forwards nothing for its pods; set net.ipv4.ip_forward to 1",
            )

    def _check_pods(self) -> None:
        """Forwarding may be on while the host's firewall drops what pods send; its policy is the host's."""
        try:
            dropped = self._firewall.dropped_pods(self._host.names_within)
        except TemporaryError as e:
            self._context.log.debug("cannot tell whether FORWARD accepts pods", reason=str(e))
            return
        if dropped:
            self._report.fail("forward", dropped)
        else:
            self._report.mend("forward")

    # What is reported.

    def _on_resolved(self) -> None:
        self._resolved = True
        self._publish_facts()

    def _publish_held(self) -> None:
        """Which routes the kernel has; before the first whole pass, those that an earlier run left."""
        if not self._passes.whole or self._passes.is_unread(self._routes):
            try:
                self._routes.load()
            except TemporaryError as e:
                self._report.fail("routes", str(e))
                return
        self._report.mend("routes")
        there = self._interface.device is not None
        if not self._passes.planned and there and (peers := self._interface.state.peers):
            self._states.publish(peers, time.monotonic())  # whose a key is, the first plan may have to ask
        actual, told = self._routes.delta.actual, self._held.state
        for key in told.keys() - actual.keys():
            self._held.remove(key)
        for key in actual.keys() - told.keys():
            self._held.put(key, True)
        self._held.flush()

    def _publish_facts(self) -> None:
        """Facts go out once the node's name has had its time to resolve: they decide who leads."""
        if not self._resolved:
            return
        device = self._interface.device
        facts = host_facts(
            self._host, self._config, self._public_key, self._names.addresses, device.kind if device else ""
        )
        self._facts.put("host", facts)
        self._facts.flush()
