"""Since when the kernel lacks something."""

from __future__ import annotations

from kilo.model.host import Failure
from kilo.netctl.failures import stopped_by
from kilo.netctl.progress import Progress

GONE = {"interface": Failure("kilo0: the interface is not there", 1)}


def passed(progress: Progress, now: float, settled: bool = True) -> float:
    """A pass begins and ends; since when something is missing after it."""
    progress.taken()
    progress.ended(settled, {}, now)
    return progress.since


def test_a_plan_is_late_until_a_pass_that_began_with_it_ends_well() -> None:
    progress = Progress()
    assert progress.since == 0
    progress.heard(7, 100)
    assert progress.since == 100
    assert passed(progress, 101, settled=False) == 100
    assert passed(progress, 102) == 0
    assert progress.applied == 7
    progress.taken()
    progress.heard(8, 200)
    progress.ended(True, {}, 201)
    assert progress.since == 200, "it came in the middle of the pass"
    assert progress.applied == 7
    assert passed(progress, 202) == 0 and progress.applied == 8


def test_plans_that_come_all_the_time_make_nobody_late() -> None:
    progress = Progress()
    for second in range(100, 200):
        progress.heard(second, second)
        progress.taken()
        progress.heard(1000 + second, second + 0.5)
        progress.ended(True, {}, second + 0.6)
        assert progress.since == second + 0.5


def test_plans_that_are_never_applied_are_late_since_the_first_and_need_no_room() -> None:
    progress = Progress()
    for second in range(1000):
        progress.heard(second, 100 + second)
        passed(progress, 100 + second, settled=False)
    assert progress.since == 100 and len(progress._waiting) == 100
    assert passed(progress, 2000) == 0 and progress.applied == 999


def test_a_mesh_that_starts_anew_counts_from_one_again() -> None:
    progress = Progress()
    progress.heard(50, 100)
    passed(progress, 100)
    progress.heard(1, 200)
    assert progress.since == 200
    assert passed(progress, 201) == 0 and progress.applied == 1


def test_what_stops_the_data_plane_counts_whatever_the_plan() -> None:
    progress = Progress()
    progress.heard(1, 100)
    passed(progress, 101)
    progress.taken()
    progress.ended(False, {"route/0/10.2.1.0/24": Failure("no", 1)}, 102)
    assert progress.since == 0, "one object costs itself"
    for now in (110, 111):
        progress.taken()
        progress.ended(True, GONE, now)
        assert (progress.since, progress.why) == (110, "kilo0: the interface is not there")
    assert passed(progress, 112) == 0 and progress.why == ""


def test_what_others_are_told() -> None:
    progress, gauges, info = Progress(), {"routes": 1.0}, {"firewall": "nftables"}
    progress.write(gauges, info)
    assert gauges == {"routes": 1.0, "unapplied_since": 0}
    progress.heard(3, 100)
    progress.ended(False, GONE, 101)
    progress.write(gauges, info)
    assert gauges == {"routes": 1.0, "unapplied_since": 100, "planned_generation": 3}
    assert info == {"firewall": "nftables", "stopped": "kilo0: the interface is not there"}
    passed(progress, 101)
    progress.write(gauges, info)
    assert gauges["applied_generation"] == 3 and gauges["unapplied_since"] == 0
    assert info == {"firewall": "nftables"}


def test_what_stops_the_data_plane() -> None:
    assert stopped_by({}) == ""
    assert stopped_by({"peer/x": Failure("no", 1), "rule/1": Failure("no", 1)}) == ""
    broken = {"all routes": Failure("all routes: answers were lost", 1)}
    assert stopped_by(broken) == "all routes: answers were lost"
    assert stopped_by({**broken, **GONE}) == "kilo0: the interface is not there"
