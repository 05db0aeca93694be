"""For tests of one worker: the worker in a process of its own, its partners on the bus played here."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kilo.bus import Loop, Publisher, Subscription, Topic, state_of
from kilo.bus.publisher import Outlet
from kilo.config import Config
from kilo.model.host import WorkerState
from kilo.worker import Context, Worker, run
from tests.clock import Given, bound

T = TypeVar("T")
Factory = Callable[[Context], Worker]
PATIENCE = 45.0
"""Seconds for what must happen: so many that only a fault needs more."""
QUICK = 0.1
"""Seconds between heartbeats that a test need not wait for."""


def eventually(condition: Callable[[], T | None], timeout: float = PATIENCE, what: str = "") -> T:
    """The first true value of ``condition``; fails after ``timeout`` seconds, and not before ``PATIENCE``."""
    timeout = max(timeout, PATIENCE)
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout} s: {what or condition}"
        time.sleep(0.02)
    return value


def within(seconds: float, condition: Callable[[], object], what: str = "") -> None:
    """Fails if ``condition`` does not come true within ``bound(seconds)``: for what must be soon."""
    with Given() as clock:
        while not condition():
            assert clock.seconds < bound(seconds), f"not within {bound(seconds)} s: {what or condition}"
            time.sleep(0.02)


class Bus:
    """Plays workers: publishes what they would, and keeps what the worker under test reports."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.loop = Loop()
        self._outlets: dict[str, Outlet] = {}
        self._publishers: dict[str, Publisher[Any]] = {}
        self._subscriptions: dict[str, Subscription[Any]] = {}
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def close(self) -> None:
        self.loop.stop()
        self._thread.join()
        self.loop.close()

    def put(self, topic: Topic[T], **values: T) -> None:
        """Set keys of a topic, as its producer would, and send; with none, send an empty topic."""
        self.update(topic, values)

    def update(self, topic: Topic[T], values: Mapping[str, T], remove: tuple[str, ...] = ()) -> None:
        """As ``put``, for keys that are no identifiers; also removes."""

        def send() -> None:
            publisher = self._publisher(topic)
            for key, value in values.items():
                publisher.put(key, value)
            for key in remove:
                publisher.remove(key)
            publisher.flush()

        self.on_loop(send)

    def state(self, worker: str) -> WorkerState | None:
        """What ``worker`` last said about itself; None for one that has ended, whose last words are kept."""
        topic = state_of(worker)
        if worker not in self._subscriptions:
            self.on_loop(lambda: self._subscribe(topic))
        value: WorkerState | None = self._subscriptions[worker].state.get("state")
        return value if value and Path(f"/proc/{value.pid}").exists() else None

    def on_loop(self, work: Callable[[], None]) -> None:
        done = threading.Event()

        def body() -> None:
            work()
            done.set()

        self.loop.post(body)
        assert done.wait(PATIENCE)

    def _publisher(self, topic: Topic[T]) -> Publisher[T]:
        if topic.name not in self._publishers:
            if topic.producer not in self._outlets:
                self._outlets[topic.producer] = Outlet(self.loop, str(self.run_dir), topic.producer)
            self._publishers[topic.name] = self._outlets[topic.producer].publish(topic)
        return self._publishers[topic.name]

    def _subscribe(self, topic: Topic[WorkerState]) -> None:
        self._subscriptions[topic.producer] = Subscription(
            self.loop, str(self.run_dir), topic, lambda change: None
        )


class Running:
    """A worker in a process of its own; what it logs is in ``log``. ``beat``: seconds between heartbeats
    beside those of use, for a test that waits for them; 0 for none."""

    def __init__(self, name: str, factory: Factory, config: Config, beat: float = 0) -> None:
        self.name = name
        fd, path = tempfile.mkstemp(prefix=f"kg-{name}-")
        os.close(fd)
        self._log = Path(path)
        code = f"import sys; sys.path[:] = {sys.path!r}; from tests.feeding import main; main()"
        options = [f"-W{option}" for option in sys.warnoptions]
        # not by multiprocessing, which would import pytest, too, for a third of a second
        self.process = subprocess.Popen([sys.executable, *options, "-c", code], stdin=subprocess.PIPE)
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pickle.dump((name, factory, config, path, beat), pipe)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines logged, decoded; those of standard error that are no JSON as ``msg``."""
        lines = []
        for line in self._log.read_bytes().splitlines():
            try:
                lines.append(msgspec.json.decode(line, type=dict[str, Any]))
            except msgspec.DecodeError:
                lines.append({"level": "stderr", "msg": line.decode()})
        return lines

    def messages(self, level: str) -> list[str]:
        return [line["msg"] for line in self.log if line["level"] == level]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def close(self) -> None:
        self.end()
        self._log.unlink(missing_ok=True)


@contextmanager
def running(name: str, factory: Factory, config: Config, beat: float = 0) -> Iterator[Running]:
    worker = Running(name, factory, config, beat)
    try:
        yield worker
    finally:
        worker.close()


def main() -> None:
    """The worker that standard input says."""
    name, factory, config, log, beat = pickle.load(sys.stdin.buffer)
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)

    def made(context: Context) -> Worker:
        if beat:
            context.loop.call_every(beat, context.beat)
        worker: Worker = factory(context)
        return worker

    raise SystemExit(run(name, made, config))
