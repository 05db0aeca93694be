"""What counts as ready, and totals that never go down."""

from __future__ import annotations

import pytest

from kilo.health.gather import EVENTS_MAX, ErrorTotals, WorkerView, not_ready
from tests.unit.health.samples import snapshot, state, views


def test_all_well_is_ready() -> None:
    assert not_ready(snapshot()) == {}


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (WorkerView("netctl"), "not heard yet"),
        (WorkerView("netctl", state("netctl"), 5.4), "not heard for 5 s"),
        (WorkerView("netctl", state("netctl", phase="starting"), 0.1), "starting"),
        (WorkerView("netctl", state("netctl"), 0.1), "no plan is applied yet"),
        (WorkerView("netctl", state("netctl", phase="stopping"), 0.1), "stopping"),
    ],
)
def test_one_worker_that_is_not(view: WorkerView, reason: str) -> None:
    assert not_ready(snapshot(workers=views(netctl=view))) == {"netctl": reason}


def test_without_a_topology_nothing_is_applied() -> None:
    assert not_ready(snapshot(topology=None)) == {"topology": "there is no plan yet"}


def test_the_cni_worker_may_be_missing_where_it_has_nothing_to_do() -> None:
    workers = views(cni=WorkerView("cni"))
    assert not_ready(snapshot(workers=workers, cni=False)) == {}
    assert not_ready(snapshot(workers=workers)) == {"cni": "not heard yet"}


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
