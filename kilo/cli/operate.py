"""``kg status``, ``kg restart`` and ``kg tail``: read from the bus, ask the parent."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from kilo.bus import PLAN, PROBLEMS, WIREGUARD, WORKERS, Change, Loop, Subscription, state_of
from kilo.bus.topics import ALL
from kilo.config import Config, FlagError
from kilo.errors import KiloError, TemporaryError
from kilo.model.host import WorkerState
from kilo.model.plan import Summary
from kilo.supervisor.control import RESTART_LIMIT, Reply, Request, ask

HEALTHY, DEGRADED, NOT_RUNNING = 0, 1, 3
LISTEN_FOR = 1.5
"""Seconds that status listens at most; a heartbeat comes every second."""
HANDSHAKE_LIMIT = 180


def main(command: str, config: Config, words: list[str]) -> int:
    """Run one of the operator's commands; its exit status."""
    if len(words) > 1:
        raise FlagError(f"{words[1]!r} is not expected after kg {command} {words[0]}")
    if command == "restart":
        return restart(config, words)
    if command == "tail":
        return tail(config, words)
    return status(config)


def restart(config: Config, words: list[str]) -> int:
    """Restart a worker, or all, and say how long that took."""
    if not words or words[0] not in (*WORKERS, "all"):
        given = f", not {words[0]!r}" if words else ""
        raise FlagError(f"kg restart needs one of {', '.join(WORKERS)}, all{given}")
    try:
        reply = ask(config.run_dir, Request("restart", words[0]), RESTART_LIMIT + 5)
    except KiloError as e:
        print(f"kg: {e}", file=sys.stderr)
        return NOT_RUNNING
    for name, seconds in reply.seconds.items():
        print(f"{name} is ready again after {seconds:.2f} s")
    if reply.error:
        print(f"kg: {reply.error}", file=sys.stderr)
        return 1
    return 0


def tail(config: Config, words: list[str]) -> int:
    """Print every message of one worker's topics, or of all, as JSON lines until interrupted."""
    if words and words[0] not in WORKERS:
        raise FlagError(f"kg tail: {words[0]!r} is not a worker; there are {', '.join(WORKERS)}")
    loop = Loop()

    def show(topic: str) -> Any:
        def on_change(change: Change[Any]) -> None:
            record = {
                "ts": round(time.time(), 3),
                "topic": topic,
                "upserts": change.upserts,
                "removals": sorted(change.removals),
            }
            sys.stdout.write(msgspec.json.encode(record, enc_hook=str).decode() + "\n")
            sys.stdout.flush()

        return on_change

    def bad(topic: str, reason: str) -> None:
        print(f"kg tail: a message of {topic} was dropped: {reason}", file=sys.stderr)

    for topic in ALL:
        if not words or topic.producer == words[0]:
            Subscription(loop, config.run_dir, topic, show(topic.name), bad)
    signal.signal(signal.SIGTERM, lambda n, f: loop.stop())
    with contextlib.suppress(KeyboardInterrupt):
        loop.run()
    loop.close()
    return 0


def status(config: Config) -> int:
    """Print how the agent is doing, worst news first where there is any."""
    heard = listen(config.run_dir)
    parent: Reply | None = None
    note = ""
    try:
        parent = ask(config.run_dir, Request("status"))
    except TemporaryError:
        note = "no parent; each worker runs alone"
    except KiloError as e:
        note = str(e)
    if not heard.states and parent is None:
        if not os.access(config.run_dir, os.R_OK | os.X_OK) and os.path.exists(config.run_dir):
            print(f"no right to look at {config.run_dir}; only root may", file=sys.stderr)
            return NOT_RUNNING
        print(f"kg does not run here: nothing answers in {config.run_dir}")
        return NOT_RUNNING
    bad = heard.bad()
    print(f"node {config.hostname}: {'healthy' if not bad else 'DEGRADED'}")
    for line in bad:
        print(f"  ! {line}")
    if note:
        print(f"  {note}")
    print()
    print(table(worker_rows(heard.states, parent)))
    print("\n".join(heard.facts()))
    return DEGRADED if bad else HEALTHY


class Heard:
    """What the bus said while status listened."""

    def __init__(
        self,
        states: Mapping[str, WorkerState],
        plan: Subscription[Any],
        problems: Subscription[Any],
        peers: Subscription[Any],
    ) -> None:
        self.states = states
        self.plan = plan.state
        self.problems = problems.state
        self.peers = peers.state

    def bad(self) -> list[str]:
        """Why the node is not healthy; empty if it is."""
        lines = [f"{w} is not heard" for w in WORKERS if w not in self.states]
        for name, state in self.states.items():
            if state.phase != "ready":
                waits = state.info.get("waiting_for")
                lines.append(f"{name} is {state.phase}" + (f"; it waits for {waits}" if waits else ""))
            for key, failure in state.failing.items():
                lines.append(f"{name}: {key}: {failure.message} (for {ago(failure.since)})")
        summary, netctl = self.plan.get("summary"), self.states.get("netctl")
        if isinstance(summary, Summary) and netctl is not None:
            applied = netctl.gauges.get("applied_generation")
            if applied != summary.generation:
                at = "none is" if applied is None else f"{applied:g} is"
                lines.append(f"plan {summary.generation} is not applied; {at}")
        return lines

    def facts(self) -> list[str]:
        """What is planned and applied, the peers, and who takes no part."""
        lines = [""]
        summary = self.plan.get("summary")
        if isinstance(summary, Summary):
            applied = (
                self.states["netctl"].gauges.get("applied_generation") if "netctl" in self.states else None
            )
            at = "unknown" if applied is None else f"{applied:g}"
            role = "leader" if summary.leader else "not the leader"
            lines.append(
                f"plan {summary.generation}, applied {at}; {summary.location}, {role}; "
                f"{summary.nodes} nodes, {summary.segments} segments, {summary.peers} peers"
            )
        else:
            lines.append("no plan yet")
        if "netctl" in self.states and (firewall := self.states["netctl"].info.get("firewall")):
            lines.append(f"firewall: {firewall}")
        now = time.time()
        fresh = sum(1 for p in self.peers.values() if now - p.last_handshake <= HANDSHAKE_LIMIT)
        never = sum(1 for p in self.peers.values() if not p.last_handshake)
        lines.append(
            f"{len(self.peers)} WireGuard peers: {fresh} with a handshake in the last 3 minutes, {never} that"
            " never had one; a peer without traffic has none"
        )
        if self.problems:
            names = {(p.kind, p.name) for p in self.problems.values()}
            lines.append(f"{len(names)} objects take no part, or only in part:")
        named = sorted(self.problems.values(), key=lambda p: (p.kind, p.name, p.field))[:100]
        return lines + [f"  {p.kind} {p.name}: {p.field}: {p.reason} (for {ago(p.since)})" for p in named]


def listen(run_dir: str) -> Heard:
    """Collect the state of the bus: until all workers were heard, or for LISTEN_FOR seconds."""
    loop = Loop()
    states: dict[str, WorkerState] = {}
    wanted = (PLAN, PROBLEMS, WIREGUARD)
    followed: list[Subscription[Any]] = []

    def look(_: Change[Any]) -> None:
        if len(states) == len(WORKERS) and all(s.complete for s in followed):
            loop.stop()

    def on_state(change: Change[WorkerState]) -> None:
        states.update({s.worker: s for s in change.upserts.values()})
        look(change)

    followed.extend(Subscription(loop, run_dir, topic, look) for topic in wanted)
    for worker in WORKERS:
        Subscription(loop, run_dir, state_of(worker), on_state)
    loop.run_for(LISTEN_FOR)
    heard = Heard(states, *followed)
    loop.close()
    return heard


def worker_rows(states: Mapping[str, WorkerState], parent: Reply | None) -> list[list[str]]:
    """One row a worker, from the parent's view where there is one, else from its own."""
    rows = [["WORKER", "PID", "STATE", "UPTIME", "RESTARTS", "MEMORY", "CPU", "LAST ERROR"]]
    known = {w.worker: w for w in parent.workers} if parent else {}
    for name in WORKERS:
        state, seen = states.get(name), known.get(name)
        memory = f"{state.resident_bytes / 2**20:.0f} MiB" if state else "-"
        cpu = f"{state.cpu_seconds:.1f} s" if state else "-"
        if seen:
            row = [
                str(seen.pid or "-"),
                seen.state,
                span(seen.uptime),
                str(seen.restarts),
                memory,
                cpu,
                seen.last_error,
            ]
        elif state:
            row = [str(state.pid), state.phase, ago(state.started), "-", memory, cpu, ""]
        else:
            row = ["-", "not heard", "-", "-", "-", "-", ""]
        rows.append([name, *row])
    return rows


def table(rows: list[list[str]]) -> str:
    """Rows in columns of equal width, the last one free."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


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
