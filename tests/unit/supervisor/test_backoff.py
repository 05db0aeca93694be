"""The waits between restarts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kilo.supervisor.backoff import FIRST, HEALTHY_AFTER, LIMIT, Backoff


def test_waits_double_up_to_the_limit_and_a_minute_of_health_resets_them() -> None:
    backoff = Backoff()
    waits = [backoff.delay(1.0, 0.0) for _ in range(12)]
    assert waits[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert waits[-1] == LIMIT
    assert backoff.delay(HEALTHY_AFTER, 0.0) == FIRST


@given(st.lists(st.tuples(st.floats(0, 120), st.floats(0, 1, exclude_max=True)), max_size=200))
def test_a_wait_is_never_nothing_and_never_beyond_the_limit(lives: list[tuple[float, float]]) -> None:
    backoff = Backoff()
    assert all(FIRST / 2 <= backoff.delay(lived, chance) <= LIMIT for lived, chance in lives)
