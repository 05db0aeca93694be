"""The producing side: one XPUB socket, any number of topics, nothing read from subscribers but
which topics they want."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import zmq

from kilo.bus.loop import Loop
from kilo.bus.topics import Topic
from kilo.bus.wire import VERSION, Frame, encode, endpoint, socket_path
from kilo.errors import PermanentError, TemporaryError

T = TypeVar("T")
BEACON_PERIOD = 5.0
SNAPSHOT_GAP = 0.05
QUEUE = 1000
MOST_WANTED = 64
"""Bytes of what a subscriber sends: the name of a topic. What it wants is remembered."""


class Outlet:
    """The socket of one worker, bound in its own directory. Make publishers with ``publish``.

    Raises PermanentError if it cannot be bound, TemporaryError while another process of this worker
    runs there: it would be unheard from then on.
    """

    def __init__(self, loop: Loop, run_dir: str, worker: str) -> None:
        self.worker = worker
        self._loop = loop
        self._publishers: dict[bytes, Publisher[object]] = {}
        self._path = socket_path(run_dir, worker)
        self._lock = self._prepare(self._path)
        loop.at_close(lambda: os.close(self._lock))
        socket = loop.context.socket(zmq.XPUB)
        socket.set(zmq.XPUB_VERBOSE, 1)
        socket.set(zmq.SNDHWM, QUEUE)
        socket.set(zmq.MAXMSGSIZE, MOST_WANTED)
        socket.set(zmq.LINGER, 200)
        self._socket = socket
        self._endpoint = endpoint(run_dir, worker)
        self._bind()
        loop.add_reader(socket, self._on_subscription)
        loop.call_every(BEACON_PERIOD, self._beacon)

    def _bind(self) -> None:
        try:
            self._socket.bind(self._endpoint)
            os.chmod(self._path, 0o660)
            self._number = _number_of(self._path)
        except (zmq.ZMQError, OSError) as e:
            raise PermanentError(f"cannot bind the bus socket {self._path}: {e}") from e

    def _look_after(self) -> None:
        """Bind again if somebody removed the socket's file: who is connected stays so, and others can come.

        Raises TemporaryError if it cannot, as when another process took the place meanwhile.
        """
        if _number_of(self._path) == self._number:
            return
        try:
            if _number_of(self._path.with_name("lock")) != os.fstat(self._lock).st_ino:
                lock = self._prepare(self._path)
                os.close(self._lock)
                self._lock = lock
            with contextlib.suppress(zmq.ZMQError):  # it was not bound the last time either
                self._socket.unbind(self._endpoint)
            self._bind()
        except PermanentError as e:
            raise TemporaryError(str(e)) from e

    def _prepare(self, path: Path) -> int:
        """Make the directory, and lock it for as long as the loop lives. The lock's descriptor."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(path.with_name("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise PermanentError(f"cannot prepare the bus socket {path}: {e.strerror}") from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except OSError as e:
            os.close(lock)
            if not isinstance(e, BlockingIOError):
                raise PermanentError(f"cannot prepare the bus socket {path}: {e.strerror}") from e
            raise TemporaryError(
                f"another {self.worker} runs here: it holds {path.parent}; end it, or give another --run-dir"
            ) from e
        return lock

    def publish(self, topic: Topic[T]) -> Publisher[T]:
        """The publisher of ``topic``, which must be this worker's."""
        if topic.producer != self.worker:
            raise ValueError(f"{self.worker} does not produce {topic.name}")
        publisher = Publisher(self, self._loop, topic)
        self._publishers[topic.name.encode()] = publisher  # type: ignore[assignment]
        return publisher

    def send(self, topic: Topic[T], frame: Frame[T]) -> None:
        self._socket.send_multipart([topic.name.encode(), encode(frame)], zmq.NOBLOCK)

    def _on_subscription(self) -> None:
        while True:
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if message[:1] == b"\x01" and (publisher := self._publishers.get(message[1:])):
                publisher.snapshot_soon()

    def _beacon(self) -> None:
        for publisher in self._publishers.values():
            publisher.beacon()
        self._look_after()


def _number_of(path: Path) -> int:
    """The inode, 0 if there is no such file."""
    with contextlib.suppress(OSError):
        return path.lstat().st_ino
    return 0


class Publisher(Generic[T]):
    """The current value of one topic. Nothing is sent before the first ``flush``: until then the
    topic has no value, which is not the same as an empty one."""

    def __init__(self, outlet: Outlet, loop: Loop, topic: Topic[T]) -> None:
        self.topic = topic
        self.state: dict[str, T] = {}
        self._outlet = outlet
        self._loop = loop
        self._epoch = secrets.token_hex(8)
        self._seq = 0
        self._open = False
        self._upserts: dict[str, T] = {}
        self._removals: set[str] = set()
        self._snapshot_due = False

    def put(self, key: str, value: T) -> None:
        """Set ``key``, unless it has that value already."""
        if key in self.state and self.state[key] == value:
            return
        self.state[key] = value
        self._upserts[key] = value
        self._removals.discard(key)

    def remove(self, key: str) -> None:
        """Remove ``key`` if it is there."""
        if self.state.pop(key, None) is not None:
            self._upserts.pop(key, None)
            self._removals.add(key)

    def replace(self, state: Mapping[str, T]) -> None:
        """Make the topic's value ``state``; only differences will be sent."""
        for key in self.state.keys() - state.keys():
            self.remove(key)
        for key, value in state.items():
            self.put(key, value)

    def flush(self) -> bool:
        """Send what changed, as one message. True if there was anything to send."""
        if self._open and not self._upserts and not self._removals:
            return False
        if not self._open:
            self._open = True
            self._snapshot()
            return True
        self._seq += 1
        frame = Frame(VERSION, "delta", self._epoch, self._seq, self._upserts, sorted(self._removals))
        self._upserts, self._removals = {}, set()
        self._outlet.send(self.topic, frame)
        return True

    def snapshot_soon(self) -> None:
        """Send the whole state to all subscribers, soon: requests that come close together share one."""
        if not self._snapshot_due:
            self._snapshot_due = True
            self._loop.call_later(0 if self._seq < 2 else SNAPSHOT_GAP, self._snapshot)

    def beacon(self) -> None:
        if self._open:
            self._outlet.send(self.topic, Frame(VERSION, "beacon", self._epoch, self._seq, {}, []))

    def _snapshot(self) -> None:
        self._snapshot_due = False
        if not self._open:
            return
        if self._upserts or self._removals:
            self._seq += 1
            self._upserts, self._removals = {}, set()
        self._outlet.send(self.topic, Frame(VERSION, "snapshot", self._epoch, self._seq, self.state, []))
