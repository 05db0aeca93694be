"""A snapshot as Prometheus text.

Pure but for the import of prometheus_client, which is done at the first scrape: it costs memory
that a node nobody scrapes need not spend. Names and types of ``kilo_errors_total``, ``kilo_leader``,
``kilo_nodes``, ``kilo_peers`` and ``kilo_reconciles_total`` are the Go agent's. What other workers
call their gauges is checked, and bounded in number. Used by kilo.health.site alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kilo import __version__
from kilo.health.gather import Snapshot, not_ready
from kilo.model.text import printable
from kilo.model.topology import keepers, name_of

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GAUGES_MAX = 100
PEERS_MAX = 5_000
LABEL_MAX = 200
RECONCILES = "reconciles_total"
_TAKEN = (RECONCILES, "leader", "nodes", "peers", "problems")
"""What workers report under names of ours, with the same meaning: served from where it is newest."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,79}")
_RESERVED = re.compile(
    r"(errors|reconciles)_total|leader|nodes|peers|ready|build_info|problems"
    r"|(process|worker|peer)_.*|gauges_refused"
)


def render(snapshot: Snapshot) -> bytes:
    """All metrics in the text format, version 0.0.4."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))
    return generate_latest(registry)


class _Collector:
    """Gives a snapshot to prometheus_client."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        yield from _mesh(self._snapshot)
        yield from _workers(self._snapshot)
        yield from _own_gauges(self._snapshot)
        yield from _wireguard(self._snapshot)


def peer_names(snapshot: Snapshot) -> dict[str, str]:
    """The name of the segment's leader, or of the Peer, that has a public key here, fit to be shown."""
    kept = keepers((snapshot.topology or {}).values())
    return {key: printable(name_of(item), LABEL_MAX) for key, item in kept.items()}


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"kilo_{name}", meaning, labels=labels)


def _counter(name: str, meaning: str, *labels: str) -> CounterMetricFamily:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(f"kilo_{name}", meaning, labels=labels)


def _mesh(snapshot: Snapshot) -> Iterator[Metric]:
    errors = _counter("errors_total", "Errors while administering the mesh, of all workers.", "event")
    for event, number in sorted(snapshot.errors.items()):
        errors.add_metric([printable(event, LABEL_MAX)], number)
    yield errors
    build = _gauge("build_info", "The version of this agent.", "version")
    build.add_metric([__version__], 1)
    yield build
    is_ready = _gauge("ready", "1 if every worker runs and the plan is applied.")
    is_ready.add_metric([], not not_ready(snapshot))
    yield is_ready
    counts = [view.state.gauges.get(RECONCILES) for view in snapshot.workers.values() if view.state]
    if known := [count for count in counts if count is not None]:
        reconciles = _counter(RECONCILES, "Reconciliation attempts.")
        reconciles.add_metric([], sum(known))
        yield reconciles
    if snapshot.topology is not None:
        yield from _topology(snapshot)
    if snapshot.problems is not None:
        kinds = {"node": 0, "peer": 0}
        for problem in snapshot.problems.values():
            kind = problem.kind if problem.kind in kinds else "other"
            kinds[kind] = kinds.get(kind, 0) + 1
        problems = _gauge("problems", "Fields of objects that keep them out of the mesh, or in part.", "kind")
        for kind, number in kinds.items():
            problems.add_metric([kind], number)
        yield problems


def _topology(snapshot: Snapshot) -> Iterator[Metric]:
    head = snapshot.head
    leader = _gauge("leader", "Leadership status of the node.")
    leader.add_metric([], head is not None and head.leader)
    yield leader
    nodes = _gauge("nodes", "Nodes in the mesh.")
    nodes.add_metric([], sum(len(segment.hostnames) for segment in snapshot.segments))
    yield nodes
    peers = _gauge("peers", "Peers in the mesh.")
    peers.add_metric([], len(snapshot.peers))
    yield peers


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    up = _gauge("worker_up", "1 if the worker's heartbeat is heard.", "worker")
    is_ready = _gauge("worker_ready", "1 if the worker is up and does its job.", "worker")
    age = _gauge("worker_heartbeat_age_seconds", "Time since the worker's last heartbeat.", "worker")
    failing = _gauge("worker_failing", "Things that the worker says do not work now.", "worker")
    cpu = _counter("process_cpu_seconds_total", "CPU time of the worker's process.", "worker")
    resident = _gauge("process_resident_memory_bytes", "Resident memory of the worker's process.", "worker")
    fds = _gauge("process_open_fds", "Open file descriptors of the worker's process.", "worker")
    may = ("worker", "uid", "capabilities", "no_new_privs", "seccomp", "landlock")
    sandbox = _gauge("worker_sandbox_info", "What the worker's process may, as the kernel says.", *may)
    unrestricted = _gauge(
        "worker_sandbox_refused", "Restrictions that the worker should have and has not.", "worker"
    )
    start = _gauge("process_start_time_seconds", "Unix time of the worker's start.", "worker")
    for name, view in snapshot.workers.items():
        state = view.state
        up.add_metric([name], view.alive)
        is_ready.add_metric([name], view.alive and state is not None and state.phase == "ready")
        if state is None:
            continue
        age.add_metric([name], view.age)
        failing.add_metric([name], len(state.failing))
        if not view.alive:
            continue
        cpu.add_metric([name], state.cpu_seconds)
        resident.add_metric([name], state.resident_bytes)
        fds.add_metric([name], state.open_fds)
        start.add_metric([name], state.started)
        if (has := state.sandbox) is not None:
            flags = (str(int(has.no_new_privs)), str(int(has.seccomp)), str(has.landlock))
            sandbox.add_metric([name, str(has.uid), ",".join(has.capabilities)[:LABEL_MAX], *flags], 1)
            unrestricted.add_metric([name], len(has.refused))
    yield from (up, is_ready, age, failing, cpu, resident, fds, start, sandbox, unrestricted)


def _own_gauges(snapshot: Snapshot) -> Iterator[Metric]:
    """What workers count beside all that: ``kilo_NAME{worker}``, a counter if NAME ends in _total."""
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    refused = _gauge("gauges_refused", "Gauges of the worker with a name that is not allowed.", "worker")
    for worker, view in snapshot.workers.items():
        if view.state is None or not view.alive:
            continue
        gauges = view.state.gauges
        names = sorted(name for name in gauges if _NAME.fullmatch(name) and not _RESERVED.fullmatch(name))
        taken = sum(name in gauges for name in _TAKEN)
        refused.add_metric([worker], len(gauges) - taken - len(names[:GAUGES_MAX]))
        for name in names[:GAUGES_MAX]:
            if name not in families:
                make = _counter if name.endswith("_total") else _gauge
                families[name] = make(name, "As the worker says.", "worker")
            families[name].add_metric([worker], gauges[name])
    yield from (refused, *families.values())


def _wireguard(snapshot: Snapshot) -> Iterator[Metric]:
    if snapshot.wireguard is None:
        return
    labels = ("public_key", "name")
    shook = _gauge("peer_last_handshake_seconds", "Unix time of the last handshake, 0 for none.", *labels)
    received = _counter("peer_received_bytes_total", "Bytes received from the WireGuard peer.", *labels)
    sent = _counter("peer_sent_bytes_total", "Bytes sent to the WireGuard peer.", *labels)
    names = peer_names(snapshot)
    for key, state in sorted(snapshot.wireguard.items())[:PEERS_MAX]:
        label = [key, names.get(key, "")]
        shook.add_metric(label, state.last_handshake)
        received.add_metric(label, state.received_bytes)
        sent.add_metric(label, state.sent_bytes)
    yield from (shook, received, sent)
