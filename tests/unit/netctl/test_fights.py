"""When a repair is one of many, and when a fight is over."""

from __future__ import annotations

from kilo.netctl import fights
from kilo.netctl.fights import CALM, LIMIT, MANY, WINDOW, Fights

A, B = "route/0/10.64.1.0/24", "address/kilo0/10.4.0.1/16"


def test_repairs_are_immediate_until_there_are_many() -> None:
    made = Fights()
    for n in range(MANY):
        assert made.may_repair(A, n) and made.going_on(n) == set()
        made.repaired(A, n)
    assert made.going_on(MANY) == {A}
    assert made.may_repair(B, MANY), "another object has nothing to do with it"


def test_repairs_that_are_far_apart_are_no_fight() -> None:
    made = Fights()
    for n in range(10 * MANY):
        made.repaired(A, n * (WINDOW / (MANY - 1) + 0.1))
    assert made.going_on(0) == set()


def test_waits_double_while_somebody_goes_on() -> None:
    made, now = Fights(), 0.0
    gaps: list[int] = []
    for _ in range(MANY):
        made.repaired(A, now)
    last = now
    while len(gaps) < 9:
        now += 0.1
        if made.may_repair(A, now):
            gaps.append(round(now - last))
            made.repaired(A, now)
            last = now
        assert made.going_on(now) == {A}
    assert gaps == [1, 2, 4, 8, 16, 32, 60, 60, LIMIT]


def test_it_is_over_when_the_object_is_left_alone() -> None:
    made = Fights()
    for _ in range(MANY):
        made.repaired(A, 0)
    for second in range(10 * int(CALM)):
        made.may_repair(A, second + 0.5)
        assert made.going_on(second + 1) == {A}, "it is not as it should be"
    assert made.may_repair(A, 10 * CALM)
    made.repaired(A, 10 * CALM)
    assert made.going_on(11 * CALM - 0.1) == {A}
    assert made.going_on(11 * CALM) == set()
    assert made.may_repair(A, 11 * CALM)
    made.repaired(A, 11 * CALM)
    assert made.going_on(11 * CALM) == set(), "one repair after that is one repair"


def test_an_object_that_waits_is_lost_meanwhile() -> None:
    made = Fights()
    for _ in range(MANY):
        made.repaired(A, 0)
    assert not made.lost(A, since=0), "nobody has touched it since"
    made.may_repair(A, 0.1)
    assert made.lost(A, since=0.1)
    assert not made.lost(A, since=0.2), "who looked later has nothing to repair"
    made.repaired(A, 1)
    assert not made.lost(A, since=0) and not made.lost(B, since=0)


def test_it_is_over_when_nobody_asks_any_more() -> None:
    """The object is no longer wanted, or its device is gone, before it could be repaired."""
    made = Fights()
    for _ in range(MANY):
        made.repaired(A, 0)
    assert not made.may_repair(A, 0.5)
    assert made.going_on(LIMIT + CALM + 0.4) == {A}, "its link may be down for a while"
    assert made.going_on(LIMIT + CALM + 0.5) == set()
    assert made.may_repair(A, LIMIT + CALM + 1)


def test_what_was_repaired_long_ago_is_forgotten() -> None:
    made = Fights()
    for n in range(fights._REMEMBERED):
        made.repaired(f"route/{n}", 0)
    for _ in range(MANY):
        made.repaired("route/7", 1)
    made.may_repair("route/7", WINDOW)
    made.repaired("route/new", WINDOW + 1)
    assert len(made._objects) == 2 and made.going_on(WINDOW + 1) == {"route/7"}
