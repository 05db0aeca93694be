"""What counts as ready, and totals that never go down."""

from __future__ import annotations

import pytest

from kilo.health.gather import EVENTS_MAX, ErrorTotals, not_ready
from kilo.model.readiness import WorkerView
from tests.unit.health.samples import NOW, netctl, snapshot, state, views


def test_all_well_is_ready() -> None:
    assert not_ready(snapshot()) == {}


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (WorkerView("netctl"), "not heard"),
        (WorkerView("netctl", state("netctl"), 5.4), "not heard for 5 s"),
        (WorkerView("netctl", state("netctl", phase="starting"), 0.1), "starting"),
        (
            WorkerView("netctl", state("netctl", phase="starting", info={"waiting_for": "mesh"}), 0.1),
            "starting; it waits for mesh",
        ),
        (WorkerView("netctl", state("netctl"), 0.1), "no plan is applied yet"),
        (WorkerView("netctl", state("netctl", phase="stopping"), 0.1), "stopping"),
    ],
)
def test_one_worker_that_is_not(view: WorkerView, reason: str) -> None:
    assert not_ready(snapshot(workers=views(netctl=view))) == {"netctl": reason}


@pytest.mark.parametrize("phase", ["starting", "ready"])
def test_a_node_that_can_start_no_pod_is_not_ready(phase: str) -> None:
    """Whether it never could, or cannot any more."""
    said = state("cni", phase=phase, info={"no_pods": "no pod can be started: the disk is full"})
    workers = views(cni=WorkerView("cni", said, 0.1))
    assert not_ready(snapshot(workers=workers)) == {"cni": "no pod can be started: the disk is full"}


def of_netctl(stopped: str = "", **gauges: float) -> dict[str, str]:
    """Why a node is not ready whose netctl says this."""
    said = netctl(planned_generation=4, **gauges)
    if stopped:
        said.info["stopped"] = stopped
    return not_ready(snapshot(workers=views(netctl=WorkerView("netctl", said, 0.4))))


def test_a_plan_may_be_new_and_must_not_stay_so() -> None:
    assert of_netctl(unapplied_since=0) == {}
    assert of_netctl(unapplied_since=NOW - 4.9) == {}, "a plan that moves makes nobody unready"
    late = of_netctl(unapplied_since=NOW - 7.2)
    assert late == {"netctl": "plan 4 is not applied for 7 s; 3 is"}


def test_what_stops_the_data_plane_is_given_as_the_reason() -> None:
    stopped = "kilo0: the program that serves it does not answer"
    assert of_netctl(stopped, unapplied_since=NOW - 1) == {}, "it may come back at once"
    assert of_netctl(stopped, unapplied_since=NOW - 6) == {"netctl": stopped}
    said = state("netctl", info={"stopped": stopped}, gauges={"unapplied_since": NOW - 1})
    view = WorkerView("netctl", said, 0.4)
    assert not_ready(snapshot(workers=views(netctl=view))) == {"netctl": stopped}


def test_without_a_topology_nothing_is_applied() -> None:
    assert not_ready(snapshot(topology=None)) == {"topology": "there is no plan yet"}


def test_the_cni_worker_may_be_missing_where_it_has_nothing_to_do() -> None:
    workers = views(cni=WorkerView("cni"))
    assert not_ready(snapshot(workers=workers, cni=False)) == {}
    assert not_ready(snapshot(workers=workers)) == {"cni": "not heard"}


def test_totals_survive_a_restart() -> None:
    totals = ErrorTotals()
    totals.take(state("netctl", pid=1, errors={"apply": 3}))
    totals.take(state("netctl", pid=1, errors={"apply": 5}))
    totals.take(state("watcher", pid=2, errors={"apply": 1, "list": 2}))
    assert totals.totals() == {"apply": 6, "list": 2}
    totals.take(state("netctl", pid=3, errors={}))
    assert totals.totals() == {"apply": 6, "list": 2}
    totals.take(state("netctl", pid=3, started=1.0, errors={"apply": 1}))
    totals.take(state("netctl", pid=3, started=1.0, errors={"apply": 2}))
    assert totals.totals() == {"apply": 8, "list": 2}


def test_a_worker_cannot_make_the_totals_grow_without_end() -> None:
    totals = ErrorTotals()
    for pid in range(5):
        totals.take(state("mesh", pid=pid, errors={f"{pid}-{i}" + "x" * 100: 1 for i in range(200)}))
    found = totals.totals()
    assert len(found) <= EVENTS_MAX + 1
    assert sum(found.values()) == 1000
    assert all(len(event) <= 64 for event in found)
