"""What the workers say, as last heard, with the age of it: the source of everything that is served.

Nothing here decides or prints. A Snapshot is frozen and may be read in any thread; its mappings are
copies. Used within kilo.health.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kilo.bus import HOST, PROBLEMS, TOPOLOGY, WIREGUARD, WORKERS, Change, Subscription, state_of
from kilo.model import readiness
from kilo.model.host import HostFacts, WireGuardPeerState, WorkerState
from kilo.model.node import Problem
from kilo.model.readiness import WorkerView
from kilo.model.topology import PeerView, Segment, TopologyHead, TopologyItem
from kilo.worker import Context

EVENTS_MAX = 100
OWN = "health"


@dataclass(frozen=True)
class Snapshot:
    """All that is known at one moment, ``at`` (Unix s).

    ``topology``, ``problems`` and ``wireguard`` are None as long as nothing has been heard;
    ``topology_version`` changes with the topology. ``errors``: count by event, of all workers,
    those from before a worker's restart included.
    """

    at: float
    hostname: str
    cni: bool
    workers: Mapping[str, WorkerView] = field(default_factory=dict)
    topology: Mapping[str, TopologyItem] | None = None
    topology_version: int = 0
    problems: Mapping[str, Problem] | None = None
    wireguard: Mapping[str, WireGuardPeerState] | None = None
    host: HostFacts | None = None
    errors: Mapping[str, int] = field(default_factory=dict)

    @property
    def head(self) -> TopologyHead | None:
        item = (self.topology or {}).get("head")
        return item if isinstance(item, TopologyHead) else None

    @property
    def segments(self) -> list[Segment]:
        return [item for item in (self.topology or {}).values() if isinstance(item, Segment)]

    @property
    def peers(self) -> list[PeerView]:
        return [item for item in (self.topology or {}).values() if isinstance(item, PeerView)]


def not_ready(snapshot: Snapshot) -> dict[str, str]:
    """Why this node does not do all of its job, by worker; empty when it does."""
    reasons = readiness.not_ready(snapshot.workers, snapshot.at, snapshot.cni)
    if snapshot.topology is None:
        reasons["topology"] = "there is no plan yet"
    return reasons


class ErrorTotals:
    """Adds up the workers' error counts so that a worker's restart makes no total go down."""

    def __init__(self) -> None:
        self._before: dict[str, dict[str, int]] = {}
        self._last: dict[str, WorkerState] = {}

    def take(self, state: WorkerState) -> None:
        last = self._last.get(state.worker)
        if last is not None and (last.pid, last.started) != (state.pid, state.started):
            before = self._before.setdefault(state.worker, {})
            for event, number in last.errors.items():
                _add(before, event, number)
        self._last[state.worker] = state

    def totals(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for counts in (*self._before.values(), *(state.errors for state in self._last.values())):
            for event, number in counts.items():
                _add(totals, event, number)
        return totals


def _add(counts: dict[str, int], event: str, number: int) -> None:
    """Count, with a bound on what others may make this process remember."""
    name = event[:64] if event[:64] in counts or len(counts) < EVENTS_MAX else "other"
    counts[name] = counts.get(name, 0) + number


class Gatherer:
    """Follows the topics. ``snapshot`` may be called on the loop only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._states: dict[str, WorkerState] = {}
        self._heard: dict[str, float] = {}
        self._errors = ErrorTotals()
        self._version = 0
        self._unsound: set[str] = set()
        self._topology = context.subscribe(TOPOLOGY, self._on_topology)
        self._problems = context.subscribe(PROBLEMS, _ignore)
        self._wireguard = context.subscribe(WIREGUARD, _ignore)
        self._host = context.subscribe(HOST, _ignore)
        self._subscriptions = [
            context.subscribe(state_of(name), partial(self._on_state, name))
            for name in WORKERS
            if name != OWN
        ]

    def snapshot(self) -> Snapshot:
        """Everything as it is now, copied."""
        own = self._context.state.state.get("state")
        if own is not None:
            self._on_state(OWN, Change({"state": own}))
        now = time.monotonic()
        return Snapshot(
            at=time.time(),
            hostname=self._context.config.hostname,
            cni=self._context.config.cni,
            workers={
                name: WorkerView(name, self._states.get(name), now - self._heard.get(name, now))
                for name in WORKERS
            },
            topology=self._sound_topology(),
            topology_version=self._version,
            problems=_heard(self._problems),
            wireguard=_heard(self._wireguard),
            host=self._host.state.get("host"),
            errors=self._errors.totals(),
        )

    def _on_state(self, name: str, change: Change[WorkerState]) -> None:
        state = change.upserts.get("state")
        if state is None or state.worker != name:
            return
        self._states[name] = state
        self._heard[name] = time.monotonic()
        self._errors.take(state)

    def _on_topology(self, change: Change[TopologyItem]) -> None:
        self._version += 1
        for key in change.removals & self._unsound:
            self._mend(key)
        for key, item in change.upserts.items():
            if not _sound(item):
                self._unsound.add(key)
                self._context.report.fail(f"topology/{key}", f"{key}: its parts do not fit together", "bus")
            elif key in self._unsound:
                self._mend(key)

    def _mend(self, key: str) -> None:
        self._unsound.discard(key)
        self._context.report.mend(f"topology/{key}")

    def _sound_topology(self) -> dict[str, TopologyItem] | None:
        topology: dict[str, TopologyItem] | None = _heard(self._topology)
        for key in self._unsound:
            (topology or {}).pop(key, None)
        return topology


def _sound(item: TopologyItem) -> bool:
    """Whether a segment's parallel tuples are as long as one another, and its leader is in them."""
    if not isinstance(item, Segment):
        return True
    count = len(item.hostnames)
    return 0 <= item.leader < count and len(item.cidrs) == count and len(item.private_ips) in (0, count)


def _ignore(change: Change[Any]) -> None:
    """The subscription's state is read when somebody asks."""


def _heard(subscription: Subscription[Any]) -> dict[str, Any] | None:
    return dict(subscription.state) if subscription.complete else None
