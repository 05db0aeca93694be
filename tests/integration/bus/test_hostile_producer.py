"""A producer that was taken over: who follows it stays small, does a bounded part of work, and goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from kilo.bus import PLAN, Change, Loop, Subscription, state_of
from kilo.bus.wire import MAX_STATE, VERSION, Frame, encode, endpoint
from kilo.model.host import WorkerState
from kilo.model.plan import PlanItem
from tests.clock import Given, bound
from tests.feeding import PATIENCE

pytestmark = pytest.mark.long

MEMORY = 48 << 20
"""Bytes: what waits in libzmq, and what is decoded of one message."""


def big(number: int) -> bytes:
    """As long as a state may be, and as expensive to decode."""
    errors = {f"{number:06}{n:05}": n for n in range(17_000)}
    state = WorkerState(worker="mesh", pid=1, started=1.0, phase="ready", beat=number, errors=errors)
    return encode(Frame(VERSION, "snapshot", f"{number:016}", 1, {"state": state}, []))


@contextmanager
def forger(run_dir: Path, topic: bytes, messages: list[bytes]) -> Iterator[None]:
    """A process that sends them all the time, as fast as they are taken."""
    (run_dir / "mesh").mkdir(exist_ok=True)
    pid = os.fork()
    if not pid:
        context = zmq.Context()
        speaker = context.socket(zmq.XPUB)
        speaker.set(zmq.SNDHWM, 2)
        speaker.set(zmq.XPUB_NODROP, 1)
        speaker.bind(endpoint(str(run_dir), "mesh"))
        end = time.monotonic() + 20
        speaker.recv()
        while time.monotonic() < end:
            for message in messages:
                speaker.send_multipart([topic, message])
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timing
def test_a_flood_of_states_costs_a_part_of_a_processor(loop: Loop, tmp_path: Path) -> None:
    messages = [big(n) for n in range(10)]
    assert MAX_STATE * 0.9 < len(messages[0]) <= MAX_STATE
    beats: list[int] = []

    def on_state(change: Change[WorkerState]) -> None:
        beats.append(change.upserts["state"].beat)

    before, used, begun = resident(), time.process_time(), time.monotonic()
    with forger(tmp_path, b"mesh.state", messages), Given() as clock:
        Subscription(loop, str(tmp_path), state_of("mesh"), on_state)
        longest = 0.0
        while (passed := time.monotonic() - begun) < 5 or (len(beats) < 3 and passed < PATIENCE):
            turn = time.thread_time()
            loop.run_for(0.1)
            longest = max(longest, time.thread_time() - turn)
        passed = time.monotonic() - begun
        assert len(beats) >= 3, "it is heard all the same"
        assert (time.process_time() - used) / passed < 0.3
        assert resident() - before < MEMORY
        assert longest < 0.5, "seconds of the processor in one turn"
        assert clock.seconds < bound(5.5)


def test_a_message_that_is_too_long_is_not_taken_in(loop: Loop, tmp_path: Path) -> None:
    """100 MB of a plan, and a state one byte beyond its bound: the connection is closed before that."""
    bad: list[str] = []
    for topic, length in (("plan", 100 << 20), ("mesh.state", MAX_STATE + 1)):
        before = resident()
        with forger(tmp_path, topic.encode(), [bytes(length)]):
            before += 0
            which = PLAN if topic == "plan" else state_of("mesh")
            follower: Subscription[PlanItem | WorkerState] = Subscription(
                loop,
                str(tmp_path),
                which,  # type: ignore[arg-type]
                lambda change: None,
                lambda name, reason: bad.append(reason),
            )
            loop.run_for(1.5)
            assert not follower.complete
            assert resident() - before < MEMORY
            follower.close()
    assert bad == []


def test_a_truncated_message_changes_nothing(loop: Loop, tmp_path: Path) -> None:
    bad: list[str] = []
    whole = encode(Frame(VERSION, "snapshot", "e", 1, {"state": msgspec.convert({}, dict)}, []))
    with forger(tmp_path, b"mesh.state", [big(1)[:-n] for n in (1, 2, 1000, 100_000)] + [whole]):
        follower = Subscription(
            loop,
            str(tmp_path),
            state_of("mesh"),
            lambda change: None,
            lambda name, reason: bad.append(reason),
        )
        end = time.monotonic() + PATIENCE
        while len(bad) < 5 and time.monotonic() < end:
            loop.run_for(0.05)
    assert not follower.complete
    assert follower.state == {}
    assert len(bad) >= 5
    assert all(reason.startswith("does not decode") for reason in bad)
