from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kilo.watcher.liveness import LIMIT, READING, SILENCE, WRITING, Liveness

WALL = 1_700_000_000
PERIOD = 30


def started(last_seen: int = WALL, now: float = 100.0) -> Liveness:
    """Just after the first list, which has one node."""
    liveness = Liveness()
    liveness.contact(now)
    liveness.sight("n", last_seen, now, WALL)
    return liveness


def speak(liveness: Liveness, start: float, end: float, step: float = 5.0) -> float:
    """The API says something else every ``step`` s, and everybody is judged as often."""
    now = start
    while now < end:
        now += step
        liveness.contact(now)
        liveness.judge()
    return now


def test_a_first_timestamp_is_judged_by_the_clock() -> None:
    assert started(WALL - 59).alive("n")
    assert not started(WALL - 60).alive("n")
    assert not started(0).alive("n")
    assert not started(0).doubtful("n"), "a node that has left says so"
    assert started(WALL + 3600).alive("n"), "a clock that is ahead"


def test_last_check_in_is_when_it_was_seen_to_change_or_what_the_first_timestamp_says() -> None:
    liveness = started(WALL - 3600)
    assert liveness.checked_in("n") == WALL - 3600
    liveness.sight("n", WALL + 86400, 130.0, WALL + 30.5)
    assert liveness.checked_in("n") == WALL + 30, "by this host's clock"
    liveness.sight("n", 0, 160.0, WALL + 60)
    assert liveness.checked_in("n") == liveness.checked_in("stranger") == 0
    assert started(WALL + 3600).checked_in("n") == WALL, "not in the future"


def test_an_old_first_timestamp_leaves_in_doubt_for_as_long_as_a_check_in_may_take() -> None:
    """Its clock may be slow, or an outage just over in which nobody could check in."""
    liveness = started(WALL - 150)
    assert liveness.doubtful("n")
    speak(liveness, 100, 155)
    assert liveness.doubtful("n") and not liveness.alive("n")
    speak(liveness, 155, 175)
    assert not liveness.doubtful("n") and not liveness.alive("n")


def test_a_first_timestamp_counts_from_when_it_was_written() -> None:
    liveness = started(WALL - 50)
    speak(liveness, 100, 105)
    assert liveness.alive("n")
    speak(liveness, 105, 120)
    assert liveness.doubtful("n"), "we have not been here for long enough to know"
    speak(liveness, 120, 175)
    assert not liveness.doubtful("n") and not liveness.alive("n")


def test_no_doubt_becomes_death_while_the_api_is_away() -> None:
    liveness = started(WALL - 150)
    liveness.lost(READING)
    speak(liveness, 100, 140)
    liveness.lost(READING)
    for _ in range(10):
        assert liveness.judge() == []
    speak(liveness, 1000, 1055)
    assert liveness.doubtful("n")


def test_a_node_whose_clock_is_wrong_lives_by_its_changes() -> None:
    liveness = started(WALL - 86_400)
    assert not liveness.alive("n") and liveness.doubtful("n")
    now = 100.0
    for change in range(1, 10):
        now = speak(liveness, now, now + PERIOD)
        revived = liveness.sight("n", WALL - 86_400 + change, now, WALL)
        assert revived == (change == 1)
        assert liveness.alive("n")


def test_a_last_seen_that_goes_backwards_is_a_change() -> None:
    liveness = started(WALL)
    now = speak(liveness, 100, 150)
    liveness.sight("n", WALL - 5000, now, WALL)
    speak(liveness, now, now + 55)
    assert liveness.alive("n")


def test_a_node_that_does_not_change_dies_once() -> None:
    liveness = started()
    liveness.contact(161)
    liveness.judge()
    assert liveness.judge() == ["n"]
    assert not liveness.alive("n")
    assert liveness.judge() == []


def test_a_node_that_takes_its_last_seen_away_is_dead_at_once() -> None:
    liveness = started()
    assert liveness.sight("n", 0, 101, WALL)
    assert not liveness.alive("n")


def test_silence_is_not_news() -> None:
    liveness = started()
    for _ in range(1000):
        assert liveness.judge() == []


def test_after_a_silence_everybody_has_the_whole_time_again() -> None:
    liveness = started()
    back = 100 + SILENCE + 1
    speak(liveness, back - 1, back + LIMIT - 1, step=1)
    assert liveness.alive("n")
    speak(liveness, back + LIMIT - 1, back + LIMIT + 3, step=1)
    assert not liveness.alive("n")


def test_what_comes_behind_the_first_sign_in_one_burst_counts() -> None:
    liveness = started()
    speak(liveness, 100, 155)
    liveness.contact(165)
    assert liveness.judge() == [], "the node's own change may be the next line"
    liveness.sight("n", WALL + 30, 165.1, WALL)
    speak(liveness, 165, 220)
    assert liveness.alive("n")


def test_nobody_dies_while_the_api_is_away_for_reading_or_writing() -> None:
    for what in (READING, WRITING):
        liveness = started()
        liveness.lost(what)
        if what == WRITING:
            speak(liveness, 100, 400)
        assert liveness.alive("n")
        assert liveness.judge() == []
        liveness.wrote(400)
        speak(liveness, 400, 455)
        assert liveness.alive("n")
        speak(liveness, 455, 480)
        assert not liveness.alive("n")


def test_forgotten_nodes_start_anew() -> None:
    liveness = started(WALL - 86_400)
    liveness.sight("n", WALL - 86_399, 101, WALL)
    liveness.forget("n")
    assert not liveness.alive("n")
    liveness.sight("n", WALL - 86_398, 102, WALL)
    assert not liveness.alive("n")


@given(skew=st.integers(-(10**6), 10**6), phase=st.floats(0, PERIOD), step=st.floats(0.5, 20))
def test_a_node_that_checks_in_is_alive_whatever_its_clock_says(skew: int, phase: float, step: float) -> None:
    liveness = started(WALL + skew - PERIOD)
    now, due, beat = 100.0, 100.0 + phase, 0
    seen = False
    while now < 400:
        now += step
        liveness.contact(now)
        while due <= now:
            beat += 1
            due += PERIOD
            seen = True
        if seen:
            liveness.sight("n", WALL + skew + beat * PERIOD, now, WALL + now)
            assert liveness.alive("n")
        liveness.judge()
        assert not seen or liveness.alive("n")


class Mesh(RuleBasedStateMachine):
    """Any order of events: nobody dies who changed less than 60 s of spoken time ago."""

    @initialize()
    def start(self) -> None:
        self.liveness = Liveness()
        self.now = 1000.0
        self.stamp = WALL
        self.changed: float | None = None
        self.away: set[str] = set()

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_api_speaks(self) -> None:
        self.liveness.contact(self.now)
        self.away.discard(READING)

    @rule()
    def a_check_in_of_ours_is_taken(self) -> None:
        self.liveness.wrote(self.now)
        self.away.discard(WRITING)

    @rule(what=st.sampled_from([READING, WRITING]))
    def the_api_goes_away(self, what: str) -> None:
        self.liveness.lost(what)
        self.away.add(what)

    @rule()
    def the_node_checks_in(self) -> None:
        self.the_api_speaks()
        self.stamp += 1
        self.liveness.sight("n", self.stamp, self.now, WALL)
        self.changed = self.now

    @rule()
    def judge(self) -> None:
        before = self.liveness.alive("n")
        dead = self.liveness.judge()
        assert (dead == ["n"]) == (before and not self.liveness.alive("n"))
        if dead:
            assert not self.away
            assert self.changed is not None
            assert self.now - self.changed > LIMIT

    @invariant()
    def who_has_just_changed_is_alive(self) -> None:
        if self.changed == self.now:
            assert self.liveness.alive("n")


TestMesh = Mesh.TestCase
