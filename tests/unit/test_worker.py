"""What every worker runs in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kilo.bus import Loop, state_of
from kilo.bus.subscriber import Subscription
from kilo.config import Config
from kilo.worker import HEARTBEAT, Context
from tests.feeding import PATIENCE


@pytest.fixture
def contexts(tmp_path: Path) -> Iterator[list[Context]]:
    made = [Context(name, Config(run_dir=str(tmp_path))) for name in ("mesh", "cni", "health")]
    yield made
    for context in made:
        context.loop.close()


def test_workers_beat_at_the_same_moments_whenever_they_started(
    contexts: list[Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who hears of all of them wakes up once for it, and not once for each."""
    due = []
    for context in contexts:
        now = time.monotonic()
        with monkeypatch.context() as clock:
            clock.setattr(time, "monotonic", lambda now=now: now)
            due.append(context.heartbeats().due)
        time.sleep(0.23)
    for moment in due:
        assert (moment - due[0] + HEARTBEAT / 2) % HEARTBEAT == pytest.approx(HEARTBEAT / 2, abs=0.001)


def run_until(condition: Callable[[], object], *loops: Loop) -> None:
    """Serve all of them in turns, for ``PATIENCE`` seconds at most."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        for loop in loops:
            loop.run_for(0.02)


def test_the_first_heartbeat_does_not_wait_for_that_moment(
    contexts: list[Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent in the first round of the loop, while the clock stands still before that moment."""
    mesh = contexts[0]
    listener = Loop()
    heard: list[int] = []
    Subscription(
        listener, str(tmp_path), state_of("mesh"), lambda change: heard.append(change.upserts["state"].beat)
    )
    with monkeypatch.context() as clock:
        now = time.monotonic() // HEARTBEAT * HEARTBEAT + HEARTBEAT / 4
        clock.setattr(time, "monotonic", lambda: now)
        mesh.heartbeats()
        mesh.loop.stop()
        mesh.loop.run()
    assert mesh.state.state["state"].beat == 1
    assert not mesh.state.flush(), "it was not sent"
    run_until(lambda: heard, mesh.loop, listener)
    listener.close()
    assert heard, "nothing was sent"


def test_being_ready_is_told_at_once(contexts: list[Context], tmp_path: Path) -> None:
    """``kg restart`` and the parent wait for it."""
    mesh = contexts[0]
    listener = Loop()
    phases: list[str] = []
    Subscription(
        listener, str(tmp_path), state_of("mesh"), lambda change: phases.append(change.upserts["state"].phase)
    )
    mesh.report.ready()
    mesh.report.ready()
    run_until(lambda: phases, mesh.loop, listener)
    mesh.loop.run_for(0.1)
    listener.run_for(0.2)
    listener.close()
    assert phases == ["ready"]
