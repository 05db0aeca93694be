"""The difference and the waiting: whatever the order of plans and of the kernel's news."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kilo.netctl.reconcile import Backoff, Delta

KEYS = st.sampled_from("abcde")
VALUES = st.integers(0, 3)
STEPS = st.one_of(
    st.tuples(st.just("want"), KEYS, VALUES),
    st.tuples(st.just("forget"), KEYS),
    st.tuples(st.just("seen"), KEYS, VALUES),
    st.tuples(st.just("lost"), KEYS),
    st.tuples(st.just("loaded"), st.dictionaries(KEYS, VALUES)),
    st.tuples(st.just("pass"), st.integers(0, 5)),
)


class Kernel:
    """What a kernel has; changes are applied to it, and counted."""

    def __init__(self) -> None:
        self.has: dict[str, int] = {}
        self.changes = 0

    def run(self, delta: Delta[str, int], limit: int | None = None) -> None:
        """Apply the differences, or the first few of them."""
        for key, wanted, actual in list(delta.changes())[:limit]:
            assert self.has.get(key) == actual
            assert wanted != actual
            self.has[key] = wanted
            self.changes += 1
            delta.done(key, wanted)
        for key, actual in list(delta.removals())[:limit]:
            assert self.has.pop(key) == actual
            self.changes += 1
            delta.done(key, None)


@given(st.lists(STEPS, max_size=40))
def test_applying_the_difference_gives_what_is_desired(steps: list[tuple[object, ...]]) -> None:
    kernel, delta = Kernel(), Delta[str, int]()
    desired: dict[str, int] = {}
    for step in steps:
        match step:
            case ("want", str(key), int(value)):
                desired[key] = value
                delta.want(key, value)
            case ("forget", str(key)):
                desired.pop(key, None)
                delta.forget(key)
            case ("seen", str(key), int(value)):
                kernel.has[key] = value
                delta.seen(key, value)
            case ("lost", str(key)):
                kernel.has.pop(key, None)
                delta.lost(key)
            case ("loaded", dict() as actual):
                kernel.has = dict(actual)
                delta.loaded(dict(actual))
            case ("pass", int(limit)):
                kernel.run(delta, limit)
        differs = {k for k in desired.keys() | kernel.has.keys() if desired.get(k) != kernel.has.get(k)}
        assert set(delta.pending) == differs
        assert delta.drifted <= differs
    kernel.run(delta)
    assert kernel.has == desired
    before = kernel.changes
    kernel.run(delta)
    delta.loaded(dict(kernel.has))
    kernel.run(delta)
    assert kernel.changes == before, "nothing is left to do"


def test_a_repair_is_a_change_that_the_plan_did_not_cause() -> None:
    delta = Delta[str, int]()
    delta.want("planned", 1)
    delta.want("drifts", 1)
    delta.loaded({"drifts": 1, "stranger": 1})
    assert delta.drifted == {"stranger"}
    delta.lost("drifts")
    assert delta.drifted == {"stranger", "drifts"}
    delta.want("drifts", 2)
    delta.seen("planned", 5)
    assert delta.drifted == {"stranger"}
    delta.done("drifts", 2)
    delta.seen("drifts", 3)
    assert delta.drifted == {"stranger", "drifts"}


def test_a_wish_that_is_no_news_makes_no_drift_the_plan_s() -> None:
    delta = Delta[str, int]()
    assert delta.want("a", 1)
    delta.done("a", 1)
    delta.lost("a")
    assert not delta.want("a", 1)
    assert delta.drifted == {"a"}
    assert delta.want("a", 2)
    assert delta.drifted == set()


def test_what_is_the_same_is_decided_by_who_knows() -> None:
    tolerance = 1
    delta = Delta[str, int](lambda wanted, actual: abs(wanted - actual) <= tolerance)
    delta.want("a", 5)
    delta.seen("a", 6)
    assert not delta.pending
    tolerance = 0
    delta.check("a")
    assert list(delta.changes()) == [("a", 5, 6)]


def test_objects_are_changed_in_the_order_of_the_plan() -> None:
    delta = Delta[str, int]()
    for key in "zya":
        delta.want(key, 1)
    assert [key for key, _, _ in delta.changes()] == ["z", "y", "a"]


def test_backoff_doubles_up_to_a_minute_and_ends_with_success() -> None:
    backoff = Backoff[str]()
    now, waits = 100.0, []
    for _ in range(8):
        backoff.failed("route", now)
        waits.append(next(s for s in range(1000) if backoff.due("route", now + s)))
        now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.due("other", now)
    assert backoff.failing() == ["route"]
    backoff.reset()
    assert backoff.due("route", now)
    backoff.failed("route", now)
    backoff.failed("rule", now)
    backoff.again("route")
    backoff.again("never failed")
    assert backoff.due("route", now) and not backoff.due("rule", now)
    assert backoff.failing() == ["route", "rule"]
    backoff.worked("rule")
    backoff.worked("route")
    assert backoff.failing() == []
    backoff.failed("route", now)
    assert backoff.due("route", now + 1)
