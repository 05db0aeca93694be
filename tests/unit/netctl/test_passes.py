"""The order of a pass, and what it does about failures."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from types import SimpleNamespace

import pytest

from kilo.bus import Loop
from kilo.errors import TemporaryError
from kilo.log import Logger
from kilo.model.plan import PlanItem, Route
from kilo.netctl import passes
from kilo.netctl.fights import CALM, MANY, Fights
from kilo.netctl.passes import Passes
from kilo.netctl.reconcile import Outcome, Removed
from kilo.worker import Reporter
from tests.feeding import PATIENCE, eventually


class Played:
    """A reconciler that writes down what is asked of it."""

    more = False

    def __init__(self, name: str, journal: list[str]) -> None:
        self.name = name
        self.journal = journal
        self.outcomes: list[Outcome] = []
        self.rounds = 0
        self.broken = ""
        self.error: type[Exception] = TemporaryError
        self.hook: Callable[[], None] = lambda: None

    def _note(self, what: str) -> None:
        self.journal.append(f"{self.name}.{what}")
        self.hook()
        if self.broken == what:
            raise self.error(f"{what} is broken")

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        self.journal.append(f"{self.name}.update({','.join(upserts)}-{','.join(removals)})")
        if self.broken == "update":
            raise self.error("update is broken")

    def load(self) -> None:
        self._note("load")

    def apply(self) -> list[Outcome]:
        self._note("apply")
        self.more = self.rounds > 0
        self.rounds -= 1
        outcomes, self.outcomes = self.outcomes, []
        return outcomes

    def prune(self) -> list[Outcome]:
        self._note("prune")
        self.more = False
        return []

    def clean_up(self) -> list[Outcome]:
        return []


class Box:
    def __init__(self) -> None:
        self.journal: list[str] = []
        self.loop = Loop()
        log = self.log = Logger("netctl", "none")
        self.report = Reporter("netctl", log)
        self.one, self.two = Played("one", self.journal), Played("two", self.journal)
        self.fights = Fights()
        self.passes = Passes(self.loop, self.report, log, [self.one, self.two], self.one, self.fights)
        self.settled: list[bool] = []
        self.wholes: list[bool] = []
        self.passes.after = self._after

    def _after(self, settled: bool) -> None:
        self.settled.append(settled)
        self.wholes.append(self.passes.whole)

    def run(self, count: int = 1) -> list[str]:
        """What was asked until ``count`` more passes have ended."""
        self.journal.clear()
        want, end = len(self.settled) + count, time.monotonic() + PATIENCE
        while len(self.settled) < want:
            assert time.monotonic() < end
            self.loop.run_for(0.001)
        return list(self.journal)

    def plan(self, *keys: str, remove: tuple[str, ...] = (), usable: bool = True) -> None:
        self.passes.plan({key: Route("10.2.1.0/24", "wireguard") for key in keys}, remove, usable)


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    with contextlib.closing(made.loop):
        yield made


def test_before_the_plan_only_the_early_one_is_applied(box: Box) -> None:
    box.passes.request()
    assert box.run() == ["one.load", "one.apply"]
    box.plan("a", usable=False)
    assert box.run() == ["one.apply"], "a plan that cannot be used is kept"
    box.plan("b")
    assert box.run()[:2] == ["one.update(a,b-)", "two.update(a,b-)"]


def test_all_is_applied_in_order_then_pruned_in_reverse(box: Box) -> None:
    box.plan("a")
    assert box.run() == [
        "one.update(a-)",
        "two.update(a-)",
        "one.load",
        "one.apply",
        "two.load",
        "two.apply",
        "two.prune",
        "one.prune",
    ]
    box.passes.request()
    assert "one.load" not in box.run(), "what was read is kept up to date by events"
    box.passes.reread()
    box.passes.request()
    assert {"one.load", "two.load"} <= set(box.run())


def test_a_plan_that_moves_in_the_middle_waits_for_the_next_pass(box: Box) -> None:
    box.plan("a", "b")

    def meddle() -> None:
        box.two.hook = lambda: None
        box.plan("b", "c", remove=("a",))
        box.plan("d", remove=("b",))

    box.two.hook = meddle
    journal = box.run(2)
    _, second = (i for i, x in enumerate(journal) if x.startswith("one.update"))
    assert journal[second] in ("one.update(c,d-a,b)", "one.update(c,d-b,a)")
    assert journal.index("one.prune") < second


def test_a_plan_that_comes_during_an_early_pass_does_not_make_it_a_whole_one(box: Box) -> None:
    """Of what it says it has read and applied nothing but the early one."""

    def meddle() -> None:
        box.one.hook = lambda: None
        box.plan("a")

    box.one.hook = meddle
    box.two.outcomes = [Outcome("stale", repair=True)]
    box.passes.request()
    assert box.run(2)[:3] == ["one.load", "one.apply", "one.update(a-)"]
    assert box.settled == box.wholes == [False, True]
    assert box.passes.repairs == 0, "the second was the first that compared"


def test_a_pass_over_a_host_that_cannot_be_read_is_not_a_whole_one(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "RETRY", 0.1)

    def unreadable() -> None:
        raise TemporaryError("no answer")

    box.passes.before = unreadable
    box.plan("a")
    assert box.run() == [] and box.settled == box.wholes == [False]
    assert box.report.failing["host"].message == "host: no answer"
    assert box.passes.is_unread(box.two)
    box.passes.before = lambda: None
    assert "two.apply" in box.run() and box.settled == box.wholes == [False, True]
    assert not box.passes.is_unread(box.two) and not box.report.failing


def test_whoever_is_no_reconciler_takes_the_plan_with_them(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a pass begins, and before them; again if one of them could not."""
    monkeypatch.setattr(passes, "RETRY", 0.1)
    box.passes.take = lambda upserts, removals: box.journal.append(f"take({','.join(upserts)})")
    box.plan("a")
    box.plan("b", usable=False)
    assert box.journal == []
    box.two.broken, box.two.error = "update", TemporaryError
    assert box.run() == ["take(a,b)", "one.update(a,b-)", "two.update(a,b-)"]
    box.two.broken = ""
    assert box.run()[:3] == ["take(a,b)", "one.update(a,b-)", "two.update(a,b-)"]
    box.passes.request()
    assert not [entry for entry in box.run() if entry.startswith("take")], "once"


def test_a_long_step_lets_others_run_in_between(box: Box) -> None:
    beats = []
    box.one.rounds = 5
    box.one.hook = lambda: box.loop.call_soon(lambda: beats.append(len(box.journal)))
    box.plan("a")
    assert box.run().count("one.apply") == 6
    assert len(set(beats)) > 5


def test_errors_are_reported_retried_and_mended(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "RETRY", 0.01)
    box.two.outcomes = [Outcome("route/x", "route/x: no"), Outcome("route/y")]
    box.plan("a")
    box.run()
    assert box.settled == [False]
    assert box.report.failing["route/x"].message == "route/x: no"
    box.two.outcomes = [Outcome("route/x")]
    box.run()
    assert box.settled == [False, True] and not box.report.failing
    box.loop.run_for(0.05)
    assert len(box.settled) == 2, "no pass without a reason"


def test_what_waits_is_counted_once(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "RETRY", 0.001)
    waiting = Outcome("routes: no device", "3 routes: no device", waits=True)
    box.plan("a")
    for _ in range(4):
        box.two.outcomes = [waiting]
        box.run()
    assert box.report.errors == {"apply": 1} and box.settled == [False] * 4


def test_one_that_breaks_is_read_again_and_stops_nobody(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "RETRY", 0.001)
    box.plan("a")
    box.run()
    box.one.broken = "apply"
    box.passes.request()
    assert box.run() == ["one.apply", "two.apply", "two.prune"]
    assert box.report.failing["all one"].message == "all one: apply is broken"
    box.one.broken = ""
    assert box.run() == ["one.load", "one.apply", "two.apply", "two.prune", "one.prune"]
    assert not box.report.failing
    box.two.broken = "apply"
    box.passes.request()
    assert box.run() == ["one.apply", "two.apply"], "what it may need is not taken away"
    box.two.broken = ""
    box.run()
    box.one.broken = "load"
    box.passes.reread()
    box.passes.request()
    assert "one.apply" not in box.run(), "what could not be read is not changed"


def test_repairs_count_once_all_had_been_as_planned(box: Box) -> None:
    box.two.outcomes = [Outcome("stale", repair=True)]
    box.plan("a")
    box.run()
    assert box.passes.repairs == 0, "an earlier run's leftovers are not repairs"
    box.two.outcomes = [Outcome("x", repair=True), Outcome("y")]
    box.passes.request()
    box.run()
    assert box.passes.repairs == 1


def test_object_that_is_not_planned_is_logged_as_removed(box: Box, capfd: pytest.CaptureFixture[str]) -> None:
    box.plan("a")
    box.run()
    box.log.level = "warn"
    removed = [("route", "10.9.0.0/24 dev kilo0 proto static"), ("address", "10.9.0.1/32"), ("address", "b")]
    box.two.outcomes = [
        Outcome(f"x/{n}", repair=True, removed=Removed(*what)) for n, what in enumerate(removed)
    ]
    box.two.outcomes.append(Outcome("route/y", repair=True))
    box.passes.request()
    box.run()
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(line["msg"], line["objects"]) for line in told] == [
        ("removed a route that is not planned", ["10.9.0.0/24 dev kilo0 proto static"]),
        ("removed 2 addresses that are not planned", ["10.9.0.1/32", "b"]),
        ("repaired", ["route/y"]),
    ]
    assert box.passes.repairs == 4


def test_what_is_left_undone_on_purpose_makes_no_plan_late(box: Box) -> None:
    box.two.outcomes = [Outcome("peer/x/10.5.0.1/32", "it is another's", waits=True, deliberate=True)]
    box.plan("a")
    box.run()
    assert box.settled == [True] and box.report.failing.keys() == {"peer/x/10.5.0.1/32"}


def test_who_is_fought_is_told_once_and_so_is_the_end(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "RETRY", 0.001)
    now = time.monotonic()
    monkeypatch.setattr(passes, "time", SimpleNamespace(monotonic=lambda: now))

    def no_pass() -> bool:
        ended = len(box.settled)
        box.loop.run_for(0.05)
        return len(box.settled) == ended

    box.plan("a")
    box.run()
    for _ in range(MANY + 3):
        box.fights.repaired("route/x", now)
        box.two.outcomes = [Outcome("route/x", repair=True)]
        box.passes.request()
        box.run()
    assert box.report.failing.keys() == {"fight/route/x"}
    assert "somebody keeps undoing route/x" in box.report.failing["fight/route/x"].message
    assert box.report.errors == {"fight": 1} and box.passes.repairs == MANY + 3
    assert box.settled.pop(), "it is as planned just now"
    now += 1
    box.fights.may_repair("route/x", now)
    box.run()
    assert not box.settled.pop(), "and now it is not"
    box.fights.repaired("route/x", now)
    now += CALM - 1
    box.run()
    assert box.report.failing.keys() == {"fight/route/x"}, "it is not over yet"
    now += 1
    box.run()
    assert box.report.failing == {} and box.settled.pop()
    eventually(no_pass, what="no pass without a reason")


def test_of_many_that_are_fought_some_are_named(box: Box) -> None:
    for n in range(30):
        for _ in range(MANY):
            box.fights.repaired(f"route/{n:02}", time.monotonic())
    box.plan("a")
    box.run()
    assert len(box.passes.fought) == 30
    assert box.report.failing.keys() == {f"fight/route/{n:02}" for n in range(10)}


@pytest.mark.parametrize("step", ["update", "load", "apply", "prune"])
def test_an_error_nobody_expected_does_not_end_the_passes(
    box: Box, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A pass that never ended would keep every later one from beginning, while heartbeats went on."""
    monkeypatch.setattr(passes, "RETRY", 0.02)
    box.one.broken, box.one.error = step, KeyError
    box.plan("a")
    box.run()
    assert box.settled == [False]
    assert box.report.failing
    box.one.broken = ""
    box.run()
    assert box.settled[-1] is True
    assert box.report.failing == {}
    assert "two.update(a-)" in box.journal or step != "update"


def test_pass_whose_end_breaks_is_retried(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "RETRY", 0.01)

    def broken(settled: bool) -> None:
        box.passes.after = box._after
        raise KeyError("the end is broken")

    box.passes.after = broken
    box.one.outcomes = [Outcome("route/x", "route/x: no")]
    box.plan("a")
    with contextlib.suppress(KeyError):
        box.loop.run_for(0.1)
    assert box.run()[0] == "one.apply"
