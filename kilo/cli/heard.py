"""What the bus and the parent say about this node: listened to once, for ``kg status`` and ``kg doctor``."""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from kilo.bus import PLAN, PROBLEMS, TOPOLOGY, WIREGUARD, WORKERS, Change, Loop, Subscription, state_of
from kilo.config import Config
from kilo.errors import KiloError, TemporaryError
from kilo.model.host import Failure, Sandbox, WorkerState
from kilo.model.node import Endpoint, Problem
from kilo.model.plan import Summary
from kilo.model.readiness import APPLIED, PLANNED, SINCE, STALE, WAITING_FOR, WorkerView, not_ready
from kilo.model.topology import Segment, keepers, name_of
from kilo.sandbox.profiles import join_groups
from kilo.supervisor.control import Reply, Request, WorkerStatus, ask

LISTEN_FOR = 1.5
"""Seconds that status listens at most; a heartbeat comes every second."""
DEAF = "only root may hear who the peers are, and who takes no part"


class Worker(msgspec.Struct, frozen=True):
    """A worker, from the parent's view where there is one, else from its own; None is not known.

    ``state``: down, starting, ready or stopping, or ``not heard``. ``failing``: by what does not work.
    """

    worker: str
    state: str
    pid: int | None = None
    uptime_seconds: float | None = None
    restarts: int | None = None
    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    last_error: str = ""
    waiting_for: str = ""
    failing: dict[str, Failure] = {}
    errors: dict[str, int] = {}
    sandbox: Sandbox | None = None


class Plan(msgspec.Struct, frozen=True):
    """``applied``: the generation that the kernel has, None if that is not known. ``leader``: whether this
    node is the location's, ``leads``: which one is; ``internal_ip``: the node's, or why it has none. All else
    is None while mesh is not heard."""

    generation: int | None = None
    applied: int | None = None
    location: str | None = None
    leader: bool | None = None
    leads: str | None = None
    internal_ip: str | None = None
    nodes: int | None = None
    segments: int | None = None
    peers: int | None = None


class WireGuardPeer(msgspec.Struct, frozen=True):
    """One peer of the device: who it is, as mesh says, "" if it does not; ``last_handshake``: Unix s, 0 for
    never."""

    name: str
    public_key: str
    endpoint: str
    last_handshake: int
    received_bytes: int
    sent_bytes: int


class Kernel(msgspec.Struct, frozen=True):
    """How the kernel is beside the plan, by netctl's word. ``drift_since``: Unix s since when something is
    not as planned, 0 if all is. ``repairs``: what was mended since netctl started, None while it is not
    heard; ``cni_repairs``: the same of the CNI configuration. ``fights``: what somebody keeps undoing."""

    repairs: int | None = None
    cni_repairs: int | None = None
    drift_since: float = 0.0
    fights: int = 0


class Status(msgspec.Struct, frozen=True):
    """All that ``kg status`` says. ``reasons``: why the node is not healthy; empty if it is.

    ``problems``: who takes no part in the mesh, or only in part. They and ``wireguard`` are None where the
    bus may not be heard. Times are in Unix seconds.
    """

    node: str
    running: bool
    healthy: bool
    reasons: list[str]
    note: str
    workers: list[Worker] = []
    plan: Plan | None = None
    firewall: str = ""
    kernel: Kernel = Kernel()
    wireguard: list[WireGuardPeer] | None = None
    problems: list[Problem] | None = None


def look(config: Config) -> Status:
    """Listen to the bus and ask the parent."""
    heard, parent, refused = listen(config)
    if not heard.states and parent is None:
        note = (
            unseen(config.run_dir) or refused or f"kg does not run here: nothing answers in {config.run_dir}"
        )
        return Status(config.hostname, running=False, healthy=False, reasons=[note], note=note)
    note = refused or ("" if parent else "no parent; each worker runs alone")
    reasons = heard.reasons()
    if heard.deaf:
        note = DEAF
    return Status(
        config.hostname,
        running=True,
        healthy=not reasons,
        reasons=reasons,
        note=note,
        workers=heard.workers(parent),
        plan=heard.planned(),
        firewall=heard.firewall(),
        kernel=heard.kernel(),
        wireguard=None if heard.deaf else heard.wireguard(),
        problems=None
        if heard.deaf
        else sorted(heard.problems.values(), key=lambda p: (p.kind, p.name, p.field)),
    )


def listen(config: Config) -> tuple[Heard, Reply | None, str]:
    """What the bus says; what the parent does, None where there is none; and why it refuses, or ""."""
    join_groups()
    heard = Heard(config.run_dir, config.cni)
    parent: Reply | None = None
    try:
        parent = ask(config.run_dir, Request("status"))
        if heard.incomplete:
            heard.supplement(ask(config.run_dir, Request("states")))
    except TemporaryError:
        pass  # each worker runs alone, or none does
    except KiloError as e:
        return heard, parent, str(e)
    return heard, parent, ""


def unseen(run_dir: str) -> str:
    """Why this user cannot tell whether anybody answers there, or ""."""
    if os.path.exists(run_dir) and not os.access(run_dir, os.R_OK | os.X_OK):
        return f"no right to look at {run_dir}; only root may"
    return ""


class Heard:
    """What the bus says: listens until all workers were heard, or for LISTEN_FOR seconds.

    Without ``cni`` the worker of that name may be missing. ``deaf``: the bus may not be heard, and all that
    is known was said by the parent.
    """

    def __init__(self, run_dir: str, cni: bool) -> None:
        self.states: dict[str, WorkerState] = {}
        self.deaf = False
        self._ages: dict[str, float] = {}
        self._cni = cni
        self._awaited = [name for name in WORKERS if cni or name != "cni"]
        self._loop = Loop()
        wanted = (PLAN, PROBLEMS, WIREGUARD, TOPOLOGY)
        followed: list[Subscription[Any]] = []
        followed.extend(Subscription(self._loop, run_dir, topic, self._look) for topic in wanted)
        self._followed = followed
        for worker in WORKERS:
            Subscription(self._loop, run_dir, state_of(worker), self._on_state)
        self._loop.run_for(LISTEN_FOR)
        self._loop.close()
        self._plan, self.problems, self.peers, self._topology = (s.state for s in followed)

    def _look(self, _: Change[Any]) -> None:
        if all(name in self.states for name in self._awaited) and all(s.complete for s in self._followed):
            self._loop.stop()

    def _on_state(self, change: Change[WorkerState]) -> None:
        self.states.update({s.worker: s for s in change.upserts.values()})
        self._look(change)

    @property
    def incomplete(self) -> bool:
        """Whether a worker was not heard that should be."""
        return any(name not in self.states for name in self._awaited)

    def supplement(self, told: Reply) -> None:
        """Take from the parent what was not heard: of a worker that hangs, or of all, where only root may
        hear them."""
        self.deaf = not self.states and any(age <= STALE for age in told.ages.values())
        for name, state in told.states.items():
            if name not in self.states:
                self.states[name], self._ages[name] = state, told.ages.get(name, 0.0)

    def reasons(self) -> list[str]:
        """Why the node is not healthy, who is not ready and what else does not work; empty if it is."""
        views = {name: WorkerView(name, self.states.get(name), self._ages.get(name, 0.0)) for name in WORKERS}
        lines = [f"{name}: {why}" for name, why in not_ready(views, time.time(), self._cni).items()]
        for name, state in self.states.items():
            failing = state.failing.items()
            lines += [f"{name}: {_named(key, f.message)} (for {ago(f.since)})" for key, f in failing]
        return lines

    def planned(self) -> Plan | None:
        summary, netctl = self._plan.get("summary"), self.states.get("netctl")
        applied = _gauge(netctl, APPLIED)
        if not isinstance(summary, Summary):
            if self.deaf:
                return self._gauged(applied)
            return Plan(applied=applied) if not self._hears("mesh") else None
        return Plan(
            generation=summary.generation,
            applied=applied,
            location=summary.location,
            leader=summary.leader,
            leads=self._leader_of(summary.location),
            internal_ip=self._internal_ip(),
            nodes=summary.nodes,
            segments=summary.segments,
            peers=summary.peers,
        )

    def _hears(self, name: str) -> bool:
        return name in self.states and self._ages.get(name, 0.0) <= STALE

    def _gauged(self, applied: int | None) -> Plan:
        """As much of the plan as netctl and mesh have in their gauges."""
        mesh, netctl = self.states.get("mesh"), self.states.get("netctl")
        leader = _gauge(mesh, "leader")
        return Plan(
            generation=_gauge(netctl, PLANNED),
            applied=applied,
            location=mesh.info.get("segment") if mesh else None,
            leader=None if leader is None else bool(leader),
            internal_ip=self._internal_ip(),
            nodes=_gauge(mesh, "nodes"),
            peers=_gauge(mesh, "peers"),
        )

    def _internal_ip(self) -> str | None:
        mesh = self.states.get("mesh")
        return mesh.info.get("internal_ip") if mesh else None

    def _leader_of(self, location: str) -> str | None:
        for item in self._topology.values():
            if isinstance(item, Segment) and item.location == location:
                return item.hostnames[item.leader]
        return None

    def firewall(self) -> str:
        netctl = self.states.get("netctl")
        return netctl.info.get("firewall", "") if netctl else ""

    def kernel(self) -> Kernel:
        netctl, cni = self.states.get("netctl"), self.states.get("cni")
        if netctl is None:
            return Kernel(cni_repairs=_gauge(cni, "cni_repairs_total"))
        return Kernel(
            repairs=_gauge(netctl, "repairs_total"),
            cni_repairs=_gauge(cni, "cni_repairs_total"),
            drift_since=netctl.gauges.get(SINCE, 0.0),
            fights=_gauge(netctl, "fights") or 0,
        )

    def wireguard(self) -> list[WireGuardPeer]:
        """The device's peers: those that were silent for longest come first."""
        names = {key: name_of(item) for key, item in keepers(self._topology.values()).items()}
        return [
            WireGuardPeer(
                names.get(peer.public_key, ""),
                peer.public_key,
                str(Endpoint(peer.endpoint_ip, peer.endpoint_port)) if peer.endpoint_ip else "",
                peer.last_handshake,
                peer.received_bytes,
                peer.sent_bytes,
            )
            for peer in sorted(self.peers.values(), key=lambda p: (p.last_handshake, p.public_key))
        ]

    def workers(self, parent: Reply | None) -> list[Worker]:
        known = {w.worker: w for w in parent.workers} if parent else {}
        shown = [name for name in WORKERS if name in self._awaited or name in self.states]
        return [_worker(name, self.states.get(name), known.get(name)) for name in shown]


def _worker(name: str, state: WorkerState | None, seen: WorkerStatus | None) -> Worker:
    line = Worker(name, "not heard")
    if state is not None:
        line = Worker(
            name,
            state.phase,
            pid=state.pid,
            uptime_seconds=round(max(0.0, time.time() - state.started), 1),
            memory_bytes=state.resident_bytes,
            cpu_seconds=round(state.cpu_seconds, 3),
            waiting_for=state.info.get(WAITING_FOR, ""),
            failing=state.failing,
            errors=state.errors,
            sandbox=state.sandbox,
        )
    if seen is None:
        return line
    return msgspec.structs.replace(
        line,
        state=seen.state,
        pid=seen.pid or None,
        uptime_seconds=seen.uptime,
        restarts=seen.restarts,
        last_error=seen.last_error,
    )


def _named(key: str, message: str) -> str:
    """A failure, with the name of what fails, which may be in its message."""
    return message if message.startswith(f"{key}:") else f"{key}: {message}"


def _gauge(state: WorkerState | None, name: str) -> int | None:
    value = state.gauges.get(name) if state else None
    return None if value is None else int(value)


def ago(since: float) -> str:
    """How long ago ``since`` (Unix s) was."""
    return span(time.time() - since)


def span(seconds: float) -> str:
    """A length of time for a person."""
    seconds = max(0, int(seconds))
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 7200:
        return f"{seconds // 60}m"
    return f"{seconds // 3600}h" if seconds < 172800 else f"{seconds // 86400}d"
