"""What every worker runs in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.bus import Loop, state_of
from kilo.bus.subscriber import Subscription
from kilo.config import Config
from kilo.worker import HEARTBEAT, Context


@pytest.fixture
def contexts(tmp_path: Path) -> Iterator[list[Context]]:
    made = [Context(name, Config(run_dir=str(tmp_path))) for name in ("mesh", "cni", "health")]
    yield made
    for context in made:
        context.loop.close()


def test_workers_beat_at_the_same_moments_whenever_they_started(contexts: list[Context]) -> None:
    """Who hears of all of them wakes up once for it, and not once for each."""
    due = []
    for context in contexts:
        due.append(context.heartbeats().due)
        time.sleep(0.23)
    for moment in due:
        assert (moment - due[0] + HEARTBEAT / 2) % HEARTBEAT == pytest.approx(HEARTBEAT / 2, abs=0.001)


def test_the_first_heartbeat_does_not_wait_for_that_moment(contexts: list[Context], tmp_path: Path) -> None:
    mesh = contexts[0]
    listener = Loop()
    heard: list[float] = []
    Subscription(listener, str(tmp_path), state_of("mesh"), lambda change: heard.append(time.monotonic()))
    while not 0.1 < time.monotonic() % HEARTBEAT < 0.4:  # half of the period, and more, is still to come
        time.sleep(0.02)
    begun = time.monotonic()
    mesh.heartbeats()
    mesh.loop.run_for(0.1)
    listener.run_for(0.2)
    listener.close()
    assert heard, "nothing was sent"
    assert heard[0] - begun < HEARTBEAT / 2


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
    mesh.loop.run_for(0.1)
    listener.run_for(0.2)
    listener.close()
    assert phases == ["ready"]
