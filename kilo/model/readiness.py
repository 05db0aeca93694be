"""Whether a node does all of its job, judged from what its workers say: one judgement for ``/ready``,
``kilo_ready``, the topology page and ``kg status``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kilo.model.host import WorkerState

STALE = 5.0
"""Seconds without a heartbeat after which a worker is not believed to be alive."""
APPLIED, PLANNED, SINCE = "applied_generation", "planned_generation", "unapplied_since"
"""Gauges of netctl: the plan that the kernel has, there once one has been applied in full; the plan
that it was told of last; and since when (Unix s) the kernel lacks something, 0 if nothing."""
STOPPED = "stopped"
"""The fact of netctl that says what stops the whole data plane, there while something does."""
WAITING_FOR = "waiting_for"
"""The fact of a worker that is not ready: what it waits for."""
NO_PODS = "no_pods"
"""The fact of cni that says why no pod can be started on this node, there while its file is missing or is
not what it must be, and cannot be mended. What fails while the file is good is no reason."""
LATE = 5.0
"""Seconds that netctl has to apply a plan, or to bring back what was taken away."""


@dataclass(frozen=True)
class WorkerView:
    """A worker: what it said last, None if it was never heard, and how long ago that was (s)."""

    name: str
    state: WorkerState | None = None
    age: float = 0.0

    @property
    def alive(self) -> bool:
        return self.state is not None and self.age <= STALE


def not_ready(workers: Mapping[str, WorkerView], now: float, cni: bool) -> dict[str, str]:
    """Why not all is done, by worker; empty when it is. ``now`` in Unix seconds.

    Without ``cni`` the cni worker has nothing to do, and may be missing.
    """
    reasons = {}
    for name, view in workers.items():
        if view.state is None and name == "cni" and not cni:
            continue
        if reason := _why_not(view, now):
            reasons[name] = reason
    return reasons


def _why_not(view: WorkerView, now: float) -> str:
    state = view.state
    if state is None:
        return "not heard"
    if not view.alive:
        return f"not heard for {view.age:.0f} s"
    if state.phase != "ready":
        waits, no_pods = state.info.get(WAITING_FOR), state.info.get(NO_PODS)
        return f"{state.phase}; it waits for {waits}" if waits else no_pods or state.phase
    return not_applied(state, now) if view.name == "netctl" else state.info.get(NO_PODS, "")


def not_applied(netctl: WorkerState, now: float) -> str:
    """Why the kernel is not as planned, by netctl's own word; "" while it is, or is hardly late.

    ``now`` in Unix seconds.
    """
    gauges, stopped = netctl.gauges, netctl.info.get(STOPPED, "")
    late = now - gauges[SINCE] if gauges.get(SINCE) else 0.0
    if APPLIED not in gauges:
        return stopped or "no plan is applied yet"
    if late <= LATE:
        return ""
    return (
        stopped or f"plan {gauges.get(PLANNED, 0):g} is not applied for {late:.0f} s; {gauges[APPLIED]:g} is"
    )
