"""``kg status``: what the bus and the parent say about this node, for a person or as JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from typing import Any

import msgspec

from kilo.bus import PLAN, PROBLEMS, WIREGUARD, WORKERS, Change, Loop, Subscription, state_of
from kilo.cli.running import as_it_runs
from kilo.config import Config
from kilo.errors import KiloError, TemporaryError
from kilo.model.host import Failure, Sandbox, WorkerState
from kilo.model.node import Problem
from kilo.model.plan import Summary
from kilo.model.readiness import APPLIED, WAITING_FOR, WorkerView, not_ready
from kilo.sandbox.profiles import join_groups
from kilo.supervisor.control import Reply, Request, WorkerStatus, ask

HEALTHY, DEGRADED, NOT_RUNNING = 0, 1, 3
LISTEN_FOR = 1.5
"""Seconds that status listens at most; a heartbeat comes every second."""
HANDSHAKE_LIMIT = 180
"""Seconds; WireGuard makes a new handshake within them where there is traffic."""
MOST_NAMED = 100
MANY_RIGHTS = 10
"""Capabilities; a process with as many may do as it likes."""


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
    """``applied``: the generation that the kernel has, None if that is not known. All else is None while
    mesh is not heard."""

    generation: int | None = None
    applied: int | None = None
    location: str | None = None
    leader: bool | None = None
    nodes: int | None = None
    segments: int | None = None
    peers: int | None = None


class Handshakes(msgspec.Struct, frozen=True):
    """WireGuard's peers: how many had a handshake in the last 3 minutes, and how many never had one."""

    peers: int
    recent: int
    never: int


class Status(msgspec.Struct, frozen=True):
    """All that ``kg status`` says. ``reasons``: why the node is not healthy; empty if it is.

    ``problems``: who takes no part in the mesh, or only in part. Times are in Unix seconds.
    """

    node: str
    running: bool
    healthy: bool
    reasons: list[str]
    note: str
    workers: list[Worker] = []
    plan: Plan | None = None
    firewall: str = ""
    wireguard: Handshakes = Handshakes(0, 0, 0)
    problems: list[Problem] = []


def main(config: Config, output: str, given: Collection[str] = ()) -> int:
    """Print how the agent is doing, as ``text`` or ``json``; the exit status. ``given``: the fields of the
    Config that a flag or the environment gave; the others are as the agent has them."""
    status = look(as_it_runs(config, given)[0])
    if output == "json":
        print(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    else:
        print(text_of(status))
    if not status.running:
        return NOT_RUNNING
    return HEALTHY if status.healthy else DEGRADED


def look(config: Config) -> Status:
    """Listen to the bus and ask the parent."""
    join_groups()
    heard = Heard(config.run_dir, config.cni)
    parent: Reply | None = None
    note = refused = ""
    try:
        parent = ask(config.run_dir, Request("status"))
    except TemporaryError:
        note = "no parent; each worker runs alone"
    except KiloError as e:
        note = refused = str(e)
    if not heard.states and parent is None:
        directory = config.run_dir
        note = refused or f"kg does not run here: nothing answers in {directory}"
        if os.path.exists(directory) and not os.access(directory, os.R_OK | os.X_OK):
            note = f"no right to look at {directory}; only root may"
        return Status(config.hostname, running=False, healthy=False, reasons=[note], note=note)
    reasons = heard.reasons()
    return Status(
        config.hostname,
        running=True,
        healthy=not reasons,
        reasons=reasons,
        note=note,
        workers=heard.workers(parent),
        plan=heard.planned(),
        firewall=heard.firewall(),
        wireguard=heard.handshakes(),
        problems=sorted(heard.problems.values(), key=lambda p: (p.kind, p.name, p.field)),
    )


class Heard:
    """What the bus says: listens until all workers were heard, or for LISTEN_FOR seconds.

    Without ``cni`` the worker of that name may be missing.
    """

    def __init__(self, run_dir: str, cni: bool) -> None:
        self.states: dict[str, WorkerState] = {}
        self._cni = cni
        self._awaited = [name for name in WORKERS if cni or name != "cni"]
        self._loop = Loop()
        wanted = (PLAN, PROBLEMS, WIREGUARD)
        followed: list[Subscription[Any]] = []
        followed.extend(Subscription(self._loop, run_dir, topic, self._look) for topic in wanted)
        self._followed = followed
        for worker in WORKERS:
            Subscription(self._loop, run_dir, state_of(worker), self._on_state)
        self._loop.run_for(LISTEN_FOR)
        self._loop.close()
        self._plan, self.problems, self.peers = (s.state for s in followed)

    def _look(self, _: Change[Any]) -> None:
        if all(name in self.states for name in self._awaited) and all(s.complete for s in self._followed):
            self._loop.stop()

    def _on_state(self, change: Change[WorkerState]) -> None:
        self.states.update({s.worker: s for s in change.upserts.values()})
        self._look(change)

    def reasons(self) -> list[str]:
        """Why the node is not healthy, who is not ready and what else does not work; empty if it is."""
        views = {name: WorkerView(name, self.states.get(name)) for name in WORKERS}
        lines = [f"{name}: {why}" for name, why in not_ready(views, time.time(), self._cni).items()]
        for name, state in self.states.items():
            failing = state.failing.items()
            lines += [f"{name}: {key}: {f.message} (for {ago(f.since)})" for key, f in failing]
        return lines

    def planned(self) -> Plan | None:
        summary, netctl = self._plan.get("summary"), self.states.get("netctl")
        gauge = netctl.gauges.get(APPLIED) if netctl else None
        applied = None if gauge is None else int(gauge)
        if not isinstance(summary, Summary):
            return Plan(applied=applied) if "mesh" not in self.states else None
        return Plan(
            generation=summary.generation,
            applied=applied,
            location=summary.location,
            leader=summary.leader,
            nodes=summary.nodes,
            segments=summary.segments,
            peers=summary.peers,
        )

    def firewall(self) -> str:
        netctl = self.states.get("netctl")
        return netctl.info.get("firewall", "") if netctl else ""

    def handshakes(self) -> Handshakes:
        now = time.time()
        times = [peer.last_handshake for peer in self.peers.values()]
        recent = sum(1 for t in times if now - t <= HANDSHAKE_LIMIT)
        return Handshakes(len(times), recent, sum(1 for t in times if not t))

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


def _plain(line: str) -> str:
    """Without what a terminal would obey, and on one line: parts of it are what workers say."""
    return "".join(c if c.isprintable() else "?" for c in line)


def text_of(status: Status) -> str:
    """For a person: worst news first, where there is any."""
    if not status.running:
        return _plain(status.note)
    lines = [f"node {status.node}: {'healthy' if status.healthy else 'DEGRADED'}"]
    lines += [f"  ! {reason}" for reason in status.reasons]
    if status.note:
        lines.append(f"  {status.note}")
    lines += ["", *_table(_rows(status.workers)), *_sandbox_lines(status.workers)]
    lines += ["", _plan_line(status.plan)]
    if status.firewall:
        lines.append(f"firewall: {status.firewall}")
    shakes = status.wireguard
    lines.append(
        f"{shakes.peers} WireGuard peers: {shakes.recent} with a handshake in the last 3 minutes, "
        f"{shakes.never} that never had one; a peer without traffic has none"
    )
    return "\n".join(map(_plain, lines + _problem_lines(status.problems)))


def _plan_line(plan: Plan | None) -> str:
    if plan is None:
        return "no plan yet"
    applied = "unknown" if plan.applied is None else str(plan.applied)
    if plan.generation is None:
        return f"plan unknown, as mesh is not heard; applied {applied}"
    role = "leader" if plan.leader else "not the leader"
    return (
        f"plan {plan.generation}, applied {applied}; {plan.location}, {role}; "
        f"{plan.nodes} nodes, {plan.segments} segments, {plan.peers} peers"
    )


def _problem_lines(problems: list[Problem]) -> list[str]:
    if not problems:
        return []
    names = {(p.kind, p.name) for p in problems}
    lines = [f"{len(names)} objects take no part, or only in part:"]
    lines += [
        f"  {p.kind} {p.name}: {p.field}: {p.reason} (for {ago(p.since)})" for p in problems[:MOST_NAMED]
    ]
    if len(problems) > MOST_NAMED:
        lines.append(f"  and {len(problems) - MOST_NAMED} more; kg status -o json names all")
    return lines


def _rows(workers: list[Worker]) -> list[list[str]]:
    def known(value: float | None, shown: str) -> str:
        return "-" if value is None else shown

    head = [
        "WORKER",
        "PID",
        "STATE",
        "UPTIME",
        "RESTARTS",
        "MEMORY",
        "CPU",
        "USER",
        "CAPABILITIES",
        "LAST ERROR",
    ]
    return [head] + [
        [
            w.worker,
            known(w.pid, str(w.pid)),
            w.state,
            known(w.uptime_seconds, span(w.uptime_seconds or 0)),
            known(w.restarts, str(w.restarts)),
            known(w.memory_bytes, f"{(w.memory_bytes or 0) / 2**20:.0f} MiB"),
            known(w.cpu_seconds, f"{w.cpu_seconds or 0:.1f} s"),
            str(w.sandbox.uid) if w.sandbox else "-",
            _capabilities(w.sandbox),
            w.last_error,
        ]
        for w in workers
    ]


def _capabilities(sandbox: Sandbox | None) -> str:
    """The capabilities of a worker."""
    if sandbox is None:
        return "-"
    return (",".join(sandbox.capabilities) or "none") if len(sandbox.capabilities) < MANY_RIGHTS else "all"


def _sandbox_lines(workers: list[Worker]) -> list[str]:
    """What should have been restricted and is not, once each, with the workers it is true of."""
    found: dict[str, list[str]] = {}
    for worker in workers:
        for refusal in worker.sandbox.refused if worker.sandbox else ():
            found.setdefault(refusal, []).append(worker.worker)
    return [f"not restricted: {', '.join(names)}: {refusal}" for refusal, names in found.items()]


def _table(rows: list[list[str]]) -> list[str]:
    """Rows in columns of equal width, the last one free."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


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
