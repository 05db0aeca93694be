"""``kg status``: how the agent on this node is doing, for a person or as JSON."""

from __future__ import annotations

import time
from collections.abc import Collection

import msgspec

from kilo.cli.heard import Kernel, Plan, Status, WireGuardPeer, Worker, ago, look, span
from kilo.cli.running import as_it_runs
from kilo.config import Config
from kilo.model.host import Sandbox
from kilo.model.node import Problem
from kilo.model.text import printable, printable_json

HEALTHY, DEGRADED, NOT_RUNNING = 0, 1, 3
HANDSHAKE_LIMIT = 180
"""Seconds; WireGuard makes a new handshake within them where there is traffic."""
MOST_NAMED = 100
MOST_PEERS = 20
LINE_MAX = 4000
CELL_MAX = 300
"""Characters; Kubernetes allows the name of a node or Peer 253."""
MANY_RIGHTS = 10
"""Capabilities; a process with as many may do as it likes."""


def main(config: Config, output: str, given: Collection[str] = ()) -> int:
    """Print how the agent is doing, as ``text`` or ``json``; the exit status. ``given``: the fields of the
    Config that a flag or the environment gave; the others are as the agent has them."""
    status = look(as_it_runs(config, given)[0])
    if output == "json":
        print(printable_json(msgspec.json.format(msgspec.json.encode(status), indent=2).decode()))
    else:
        print(text_of(status))
    if not status.running:
        return NOT_RUNNING
    return HEALTHY if status.healthy else DEGRADED


def _plain(line: str) -> str:
    """Without what a terminal would obey, and on one line: parts of it are what workers say."""
    return printable(line, LINE_MAX)


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
    if status.plan and status.plan.internal_ip:
        lines.append(f"internal IP: {status.plan.internal_ip}")
    if status.firewall:
        lines.append(f"firewall: {status.firewall}")
    lines.append(_kernel_line(status.kernel, status.plan))
    if status.wireguard is not None:
        lines += ["", *_peer_lines(status.wireguard)]
    return "\n".join(map(_plain, lines + _problem_lines(status.problems or [])))


def _kernel_line(kernel: Kernel, plan: Plan | None) -> str:
    """What was mended, and what is not as planned now."""
    if kernel.repairs is None:
        return "kernel: unknown, as netctl is not heard"
    if plan is None or plan.applied is None:
        return "kernel: no plan is applied yet"
    now = f"not as planned for {ago(kernel.drift_since)}" if kernel.drift_since else "as planned"
    fights = f"; {kernel.fights} things that somebody keeps undoing" if kernel.fights else ""
    cni = f", {kernel.cni_repairs} of the CNI configuration" if kernel.cni_repairs else ""
    return f"kernel: {now}; {kernel.repairs} repairs since netctl started{cni}{fights}"


def _peer_lines(peers: list[WireGuardPeer]) -> list[str]:
    now = time.time()
    recent = sum(1 for peer in peers if now - peer.last_handshake <= HANDSHAKE_LIMIT)
    never = sum(1 for peer in peers if not peer.last_handshake)
    lines = [
        f"{len(peers)} WireGuard peers: {recent} with a handshake in the last 3 minutes, "
        f"{never} that never had one; a peer without traffic has none"
    ]
    if not peers:
        return lines
    head = ["PEER", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT"]
    rows = [
        [
            peer.name or peer.public_key,
            peer.endpoint or "-",
            f"{ago(peer.last_handshake)} ago" if peer.last_handshake else "never",
            size(peer.received_bytes),
            size(peer.sent_bytes),
        ]
        for peer in peers[:MOST_PEERS]
    ]
    lines += _table([head, *rows])
    if len(peers) > MOST_PEERS:
        lines.append(f"and {len(peers) - MOST_PEERS} with later handshakes; kg status -o json names all")
    return lines


def _plan_line(plan: Plan | None) -> str:
    if plan is None:
        return "no plan yet"
    applied = "unknown" if plan.applied is None else str(plan.applied)
    if plan.generation is None:
        return f"plan unknown, as mesh is not heard; applied {applied}"
    role = "leader" if plan.leader else f"led by {plan.leads}" if plan.leads else "not the leader"
    segments = "" if plan.segments is None else f"{plan.segments} segments, "
    return (
        f"plan {plan.generation}, applied {applied}; {plan.location}, {role}; "
        f"{plan.nodes} nodes, {segments}{plan.peers} peers"
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
    rows = [[printable(cell, CELL_MAX) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def size(count: int) -> str:
    """A number of bytes for a person."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
