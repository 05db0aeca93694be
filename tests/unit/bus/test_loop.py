"""The loop: timers, posted work, and callbacks that fail."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from kilo.bus import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_timers_run_in_order_and_cancelled_ones_do_not(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    now = time.monotonic()
    with monkeypatch.context() as clock:
        clock.setattr(time, "monotonic", lambda: now)  # all count from the same moment
        loop.call_later(0.02, lambda: seen.append("second"))
        loop.call_later(0.01, lambda: seen.append("first"))
        loop.call_later(0.015, lambda: seen.append("never")).cancel()
        every = loop.call_every(0.03, lambda: seen.append("every"), first=0.03)
    while seen.count("every") < 2 and time.monotonic() < now + 5:
        loop.run_for(0.02)
    assert seen[:3] == ["first", "second", "every"]
    assert seen.count("every") >= 2
    every.cancel()
    count = len(seen)
    loop.run_for(0.05)
    assert len(seen) == count


def test_post_wakes_the_loop_from_another_thread(loop: Loop) -> None:
    begun = time.monotonic()
    thread = threading.Thread(target=lambda: (time.sleep(0.05), loop.post(loop.stop)))  # type: ignore[func-returns-value]
    thread.start()
    loop.run()
    thread.join()
    assert 0.04 < time.monotonic() - begun < 1


def test_many_posts_are_all_run(loop: Loop) -> None:
    seen: list[int] = []
    for n in range(100_000):
        loop.post(lambda n=n: seen.append(n))  # type: ignore[misc]
    loop.run_for(0.5)
    assert seen == list(range(100_000))


def test_call_soon_runs_after_the_sockets_of_the_round(loop: Loop) -> None:
    r, w = os.pipe()
    order: list[str] = []

    def on_read() -> None:
        os.read(r, 1)
        loop.call_soon(lambda: order.append("soon"))
        order.append("read")

    loop.add_reader(r, on_read)
    os.write(w, b"x")
    loop.run_for(0.05)
    loop.remove_reader(r)
    os.close(r)
    os.close(w)
    assert order == ["read", "soon"]


def test_an_error_goes_to_the_handler_and_the_loop_goes_on() -> None:
    errors: list[Exception] = []
    loop = Loop(on_error=errors.append)
    seen: list[int] = []
    loop.call_later(0, lambda: seen.append(1 // 0))
    loop.call_later(0.01, lambda: seen.append(1))
    loop.run_for(0.05)
    loop.close()
    assert [type(e) for e in errors] == [ZeroDivisionError]
    assert seen == [1]


def test_an_error_without_a_handler_ends_the_loop(loop: Loop) -> None:
    loop.call_later(0, lambda: 1 // 0)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        loop.run_for(1)


def test_a_file_that_gets_the_number_of_a_closed_one_is_not_taken_for_it(loop: Loop) -> None:
    """Both ends are ready in one round; the first callback closes the other and opens a new one."""
    first, second = os.pipe(), os.pipe()
    for _, w in (first, second):
        os.write(w, b"x")
    seen: list[str] = []
    new: list[int] = []

    def on_ready(own: int, other: int) -> None:
        seen.append("old")
        for fd in (own, other):
            loop.remove_reader(fd)
        os.close(other)
        r, w = os.pipe()
        new.extend((r, w))
        assert r == other, "the number is used again"
        loop.add_reader(r, lambda: seen.append("new"))

    loop.add_reader(first[0], lambda: on_ready(first[0], second[0]))
    loop.add_reader(second[0], lambda: on_ready(second[0], first[0]))
    loop.run_for(0.05)
    loop.remove_reader(new[0])
    for fd in {*first, *second, *new}:
        os.close(fd)
    assert seen == ["old"]
