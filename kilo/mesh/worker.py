"""The planner's process: waits for a change, plans, and says what differs. All thinking is elsewhere.

Invariants: nothing is published before the whole cluster and the host's facts are known; what
cannot be planned leaves the last plan in force; byte counters and repeated handshakes of WireGuard
cause no plan.
"""

from __future__ import annotations

import time

import msgspec

from kilo.bus import ANNOUNCE, CLUSTER, CNI, HELD, HOST, PLAN, TOPOLOGY, WIREGUARD, Change, Timer
from kilo.config import settings_of
from kilo.mesh.addresses import steady
from kilo.mesh.owners import Known, Memory, contested
from kilo.mesh.planner import Inputs, Planned, learnt_of, plan
from kilo.mesh.topology import CannotPlan, location_of
from kilo.model.host import HostFacts, WireGuardPeerState
from kilo.model.node import ApiServer, ClusterItem, Node, Peer, UDPAddress
from kilo.model.plan import route_key
from kilo.worker import Context

MIN_GAP = 0.02
"""Seconds between plans; longer while a plan itself takes longer."""
DEVICE_WITHIN = 3.0
"""Seconds that the first plan waits for the state of WireGuard where that decides, from when netctl has
told of the routes. Where there is no device yet it will not come."""


class MeshWorker:
    """Cluster, host and WireGuard state in; plan, announcement, CNI target and topology out."""

    def __init__(self, context: Context) -> None:
        self._loop, self._report, self._log = context.loop, context.report, context.log
        self._settings = settings_of(context.config)
        self._plan = context.publish(PLAN)
        self._announce = context.publish(ANNOUNCE)
        self._cni = context.publish(CNI)
        self._topology = context.publish(TOPOLOGY)
        self._context = context
        self._due = False
        self._not_before = 0.0
        self._plans = 0
        self._waiting_for = ""
        self._generation = 0
        self._conflicts: dict[str, str] = {}
        self._followed: dict[str, UDPAddress | None] = {}
        self._looked = False
        self._facts: HostFacts | None = None
        self._members: set[str] = set()
        """Names of the nodes that the last plan had."""
        self._memory = Memory()
        self._fresh: set[str] = set()
        """Keys of what the cluster has that no plan has had yet as it is."""
        self._patience: Timer | None = None

    def start(self) -> None:
        self._cluster = self._context.subscribe(CLUSTER, self._on_cluster)
        self._host = self._context.subscribe(HOST, self._on_host)
        self._wireguard = self._context.subscribe(WIREGUARD, self._on_wireguard)
        self._held = self._context.subscribe(HELD, self._on_held)
        self._say_missing()

    def stop(self, clean_up: bool) -> None:
        """Nothing to undo: what was planned is netctl's, what was announced the watcher's."""

    def _on_cluster(self, change: Change[ClusterItem]) -> None:
        self._fresh |= change.upserts.keys()
        self._soon()

    def _on_host(self, change: Change[HostFacts]) -> None:
        self._soon()

    def _on_wireguard(self, change: Change[WireGuardPeerState]) -> None:
        """Only where somebody with a keepalive has been found counts, not what passes."""
        learnt: dict[str, UDPAddress | None] = {k: learnt_of(s) for k, s in change.upserts.items()}
        learnt.update(dict.fromkeys(change.removals))
        known = self._followed
        if not self._looked or any(key in known and known[key] != where for key, where in learnt.items()):
            self._soon()

    def _on_held(self, change: Change[bool]) -> None:
        """Waited for once, and looked at when a node is in doubt: it causes no plan of its own."""
        if self._waiting_for:
            self._soon()

    def _soon(self) -> None:
        """Plan once for all that arrives close together."""
        if self._due:
            return
        self._due = True
        wait = self._not_before - time.monotonic()
        if wait > 0:
            self._loop.call_later(wait, self._reconcile)
        else:
            self._loop.call_soon(self._reconcile)

    def _reconcile(self) -> None:
        self._due = False
        if self._say_missing():
            return
        started = time.monotonic()
        self._plans += 1
        self._report.gauges["reconciles_total"] = self._plans
        try:
            inputs = self._inputs()
            self._follow(inputs)
            planned = plan(inputs)
        except CannotPlan as e:
            self._report.fail("plan", str(e), event="plan")
            return
        finally:
            took = time.monotonic() - started
            self._not_before = time.monotonic() + max(MIN_GAP, took)
        self._report.mend("plan")
        self._members = set(inputs.nodes)
        self._remember(inputs, planned)
        self._publish(planned)
        self._log.debug("planned", items=len(planned.items), milliseconds=round(took * 1000, 1))

    def _say_missing(self) -> bool:
        """Whether something has to arrive before anything can be planned; told once."""
        missing = ""
        if not self._cluster.complete:
            missing = "the cluster's nodes and peers, from the watcher"
        elif "host" not in self._host.state:
            missing = "the facts of this host, from netctl"
        elif not self._held.complete and any(
            isinstance(v, Node) and v.doubtful for v in self._cluster.state.values()
        ):
            missing = "the routes of this host, from netctl: whether some nodes are alive is in doubt"
        elif not self._members and (what := self._kernel_decides()):
            missing = f"what the kernel has, from netctl: some have the same {what}"
        if missing != self._waiting_for:
            self._waiting_for = missing
            if missing:
                self._report.info["waiting_for"] = missing
                self._log.info("waiting", waiting_for=missing)
            else:
                del self._report.info["waiting_for"]
        return bool(missing)

    def _kernel_decides(self) -> str:
        """What some have in common, where netctl is to be waited for since only the kernel can say who had
        it: a public key, or a network, unless netctl has said that no route of ours leads there."""
        if self._held.complete and self._wireguard.complete:
            return ""
        state = self._cluster.state.items()
        keys, networks = contested(v for k, v in state if isinstance(v, Node | Peer) and k != "local")
        if self._held.complete:
            networks = {network for network in networks if route_key(network) in self._held.state}
        if not (keys or networks) or (self._held.complete and self._patience_ended()):
            return ""
        return "public key" if keys else "network"

    def _patience_ended(self) -> bool:
        if self._patience is None:
            self._patience = self._loop.call_later(DEVICE_WITHIN, self._soon)
        return not self._patience.active

    def _remember(self, inputs: Inputs, planned: Planned) -> None:
        """Who has what, of those that this plan is the first to have."""
        state = self._cluster.state
        fresh = {key: state[key] for key in self._fresh & state.keys() if key != "local"}
        here = {
            key: value
            for key, value in fresh.items()
            if isinstance(value, Peer) or (isinstance(value, Node) and value.name in inputs.nodes)
        }
        self._memory.remember(here.values(), planned.owners)
        self._memory.forget(state.values())
        self._fresh = {key for key, value in fresh.items() if isinstance(value, Node) and key not in here}

    def _inputs(self) -> Inputs:
        """Raises CannotPlan if the local node is not in the cluster."""
        nodes: dict[str, Node] = {}
        peers: dict[str, Peer] = {}
        local = self._cluster.state.get("local")
        api: ApiServer | None = None
        for key, value in self._cluster.state.items():
            if isinstance(value, Peer):
                peers[value.name] = value
            elif isinstance(value, ApiServer):
                api = value
            elif key != "local" and (not value.doubtful or self._is_used(value, local)):
                nodes[value.name] = value
        if not isinstance(local, Node):
            name = self._settings.hostname
            raise CannotPlan(f"the cluster has no node {name}; --hostname names this host's node")
        wireguard = self._wireguard.state if self._wireguard.complete else None
        self._facts = steady(self._host.state["host"], self._facts)
        known = Known(self._memory.owners, self._wireguard.state, self._held.state)
        return Inputs(local, nodes, peers, self._facts, wireguard, self._settings, api, known)

    def _is_used(self, node: Node, local: ClusterItem | None) -> bool:
        """Whether ``node`` is part of the mesh on this host until now, by our plan or the kernel's routes.

        With --local=false no route of ours leads to a neighbour. He stays where there are any: whoever
        died is missed for a minute, but who lives may be the leader.
        """
        held, settings = self._held.state, self._settings
        if node.name in self._members or route_key(node.subnet) in held:
            return True
        if settings.local or not held or not isinstance(local, Node):
            return False
        granularity = settings.mesh_granularity
        return location_of(node, granularity) == location_of(local, granularity)

    def _follow(self, inputs: Inputs) -> None:
        """Remember of whom it matters where WireGuard finds them, and where that is now."""
        keys = [node.key for node in inputs.nodes.values() if node.persistent_keepalive]
        keys += [peer.public_key for peer in inputs.peers.values() if peer.persistent_keepalive]
        states = inputs.wireguard or {}
        self._looked = inputs.wireguard is not None
        self._followed = {key: learnt_of(states[key]) if key in states else None for key in keys}

    def _publish(self, planned: Planned) -> None:
        items = planned.items
        state = self._plan.state
        changed = [key for key, item in items.items() if state.get(key) != item]
        gone = [key for key in state if key not in items and key != planned.summary.key]
        for key in gone:
            self._plan.remove(key)
        for key in changed:
            self._plan.put(key, items[key])
        if changed or gone:
            self._generation += 1
        summary = msgspec.structs.replace(planned.summary, generation=self._generation)
        self._plan.put(summary.key, summary)
        self._plan.flush()
        if planned.cni is not None:
            self._cni.put("cni", planned.cni)
            self._cni.flush()
        self._announce.put("announce", planned.announcement)
        self._announce.flush()
        self._topology.replace(planned.view)
        self._topology.flush()
        self._tell(planned)

    def _tell(self, planned: Planned) -> None:
        summary = planned.summary
        self._report.gauges.update(leader=int(summary.leader), nodes=summary.nodes, peers=summary.peers)
        self._report.info["segment"] = summary.location
        self._tell_internal_ip(planned.internal_ip, bool(planned.announcement.internal_ip))
        for gone in self._conflicts.keys() - planned.conflicts.keys():
            self._report.mend(gone)
        for key, message in planned.conflicts.items():
            if self._conflicts.get(key) != message:
                self._report.fail(key, message, event="conflict")
        self._conflicts = planned.conflicts
        self._report.ready()

    def _tell_internal_ip(self, text: str, has_one: bool) -> None:
        """A node without an internal IP is not degraded, so this is a fact and no failure."""
        self._report.gauges["internal_ip"] = int(has_one)
        if self._report.info.get("internal_ip") != text:
            self._report.info["internal_ip"] = text
            if not has_one:
                self._log.info("this node has no internal IP", internal_ip=text)
