"""The producing side: any number of topics, nothing read from subscribers but which topics they want."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Generic, TypeVar

from kilo.bus.door import Door, Reader
from kilo.bus.loop import Loop
from kilo.bus.topics import ALL, Topic
from kilo.bus.wire import VERSION, Frame, encode, encode_without_secrets, socket_path

T = TypeVar("T")
BEACON_PERIOD = 5.0
SNAPSHOT_GAP = 0.05
SNAPSHOTS_AT_ONCE = 10
"""Those that come without this gap, within ``PERIOD``, as long as a topic has hardly changed: the agent is
starting, and somebody waits for each. Nobody who means well asks for more."""
PERIOD = 1.0


class Outlet:
    """What one worker publishes: a socket in its own directory. Make publishers with ``publish``.

    Raises PermanentError if it cannot be bound, TemporaryError while another process of this worker
    runs there: it would be unheard from then on.
    """

    def __init__(self, loop: Loop, run_dir: str, worker: str) -> None:
        self.worker = worker
        self._loop = loop
        self._publishers: dict[bytes, Publisher[object]] = {}
        self._topics = frozenset(topic.name.encode() for topic in ALL if topic.producer == worker)
        self._door = Door(loop, socket_path(run_dir, worker), worker, self._on_wanted)
        loop.call_every(BEACON_PERIOD, self._beacon)

    def publish(self, topic: Topic[T]) -> Publisher[T]:
        """The publisher of ``topic``, which must be this worker's."""
        if topic.producer != self.worker:
            raise ValueError(f"{self.worker} does not produce {topic.name}")
        publisher = Publisher(self._door, self._loop, topic)
        self._publishers[topic.name.encode()] = publisher  # type: ignore[assignment]
        return publisher

    @property
    def refused(self) -> int:
        """How many connections were not taken in, or were cut off."""
        return self._door.refused

    def _on_wanted(self, topic: bytes) -> bool:
        """Whether there is such a topic: the worker may come to publish it later."""
        if (publisher := self._publishers.get(topic)) is not None:
            publisher.snapshot_soon()
        return topic in self._topics

    def _beacon(self) -> None:
        for publisher in self._publishers.values():
            publisher.beacon()
        self._door.look_after()


class Publisher(Generic[T]):
    """The current value of one topic. Nothing is sent before the first ``flush``: until then the
    topic has no value, which is not the same as an empty one."""

    def __init__(self, door: Door, loop: Loop, topic: Topic[T]) -> None:
        self.topic = topic
        self.state: dict[str, T] = {}
        self._door = door
        self._name = topic.name.encode()
        self._loop = loop
        self._epoch = secrets.token_hex(8)
        self._seq = 0
        self._open = False
        self._upserts: dict[str, T] = {}
        self._removals: set[str] = set()
        self._snapshot_due = False
        self._since = 0.0
        self._at_once = 0

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
        self._send(frame, [reader for reader in self._door.readers(self._name) if self._name in reader.given])
        return True

    def snapshot_soon(self) -> None:
        """Send the whole state to those who want it, soon: requests that come close together share one."""
        if not self._snapshot_due:
            self._snapshot_due = True
            self._loop.call_later(0 if self._may_be_at_once() else SNAPSHOT_GAP, self._snapshot)

    def _may_be_at_once(self) -> bool:
        now = time.monotonic()
        if now - self._since >= PERIOD:
            self._since, self._at_once = now, 0
        self._at_once += 1
        return self._seq < 2 and self._at_once <= SNAPSHOTS_AT_ONCE

    def beacon(self) -> None:
        if self._open:
            frame: Frame[T] = Frame(VERSION, "beacon", self._epoch, self._seq, {}, [])
            self._send(frame, self._door.readers(self._name))

    def _send(self, frame: Frame[T], readers: list[Reader]) -> list[Reader]:
        """To whom of ``readers`` it goes: with the secrets that are in it to those alone who need them."""
        if not readers:
            return []
        confidant = self.topic.confidant
        told = [reader for reader in readers if not confidant or reader.user.may_be(confidant)]
        done = self._door.send(self._name, encode(frame), told) if told else []
        if len(told) < len(readers):
            others = [reader for reader in readers if reader not in told]
            done += self._door.send(self._name, encode_without_secrets(frame), others)
        return done

    def _snapshot(self) -> None:
        """To those who have not been given the whole: a reader that asks again is one of them."""
        self._snapshot_due = False
        if not self._open:
            return
        if self._upserts or self._removals:
            self.flush()
        frame = Frame(VERSION, "snapshot", self._epoch, self._seq, self.state, [])
        fresh = [reader for reader in self._door.readers(self._name) if self._name not in reader.given]
        for reader in self._send(frame, fresh):
            reader.given.add(self._name)
