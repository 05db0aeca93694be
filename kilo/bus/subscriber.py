"""The consuming side: one topic of one producer, kept whole through restarts and lost messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from kilo.bus.loop import Loop
from kilo.bus.topics import Topic
from kilo.bus.wire import MAX_MESSAGE, VERSION, Frame, endpoint
from kilo.errors import ProtocolError

T = TypeVar("T")
RECONNECT_MS = 50
QUEUE = 1000
FEW = 20
"""Messages that wait, of a topic whose value is small: the newest says it all. And so many are read within
PERIOD seconds: who sends more waits, and then loses what is old."""
BATCH = 100
PERIOD = 1.0
RESUBSCRIBE_GAP = 1.0


@dataclass(frozen=True)
class Change(Generic[T]):
    """What differs from before."""

    upserts: dict[str, T] = field(default_factory=dict)
    removals: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.upserts or self.removals)


class Subscription(Generic[T]):
    """The state of a topic as last heard. It is kept while the producer is away.

    ``on_change`` is called with what differs, after ``state`` has been brought up to date; for a
    first snapshot also where the topic is empty. Several messages that are waiting make one call.
    A message that does not decode, or is of another version, is dropped and given to ``on_bad``.
    """

    def __init__(
        self,
        loop: Loop,
        run_dir: str,
        topic: Topic[T],
        on_change: Callable[[Change[T]], None],
        on_bad: Callable[[str, str], None] = lambda topic, reason: None,
    ) -> None:
        self.topic = topic
        self.state: dict[str, T] = {}
        self.complete = False
        self._loop = loop
        self._on_change = on_change
        self._on_bad = on_bad
        self._epoch = ""
        self._seq = -1
        self._upserts: dict[str, T] = {}
        self._removals: set[str] = set()
        self._first = False
        self._asked = False
        self._few = topic.most != MAX_MESSAGE
        self._heard = 0
        self._since = 0.0
        self._name = topic.name.encode()
        socket = loop.context.socket(zmq.SUB)
        socket.set(zmq.RCVHWM, FEW if self._few else QUEUE)
        socket.set(zmq.MAXMSGSIZE, topic.most)
        socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.set(zmq.RECONNECT_IVL_MAX, 0)
        socket.set(zmq.LINGER, 0)
        socket.connect(endpoint(run_dir, topic.producer))
        socket.subscribe(self._name)
        self._socket = socket
        loop.add_reader(socket, self._receive)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _receive(self) -> None:
        for _ in range(self._allowance()):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._heard += 1
            self._take(parts)
        self._report()

    def _allowance(self) -> int:
        """How many messages may be read now. If none, none is waited for until the second is over."""
        if not self._few:
            return BATCH
        now = time.monotonic()
        if now - self._since >= PERIOD:
            self._since, self._heard = now, 0
        if self._heard >= FEW:
            self._loop.remove_reader(self._socket)
            self._loop.call_later(PERIOD, self._go_on)
        return FEW - self._heard

    def _go_on(self) -> None:
        if not self._socket.closed:
            self._loop.add_reader(self._socket, self._receive)

    def _take(self, parts: list[bytes]) -> None:
        if len(parts) != 2 or parts[0] != self._name:
            if len(parts) != 2 or not parts[0].startswith(self._name):
                self._on_bad(self.topic.name, "not two parts of this topic")
            return
        try:
            frame: Frame[T] = self.topic.decoder.decode(parts[1])
        except (msgspec.DecodeError, ProtocolError, RecursionError) as e:
            self._on_bad(self.topic.name, f"does not decode: {e}")
            return
        if frame.version != VERSION:
            self._on_bad(self.topic.name, f"version {frame.version}, not {VERSION}")
            return
        if frame.kind == "snapshot":
            if (frame.epoch, frame.seq) != (self._epoch, self._seq):
                self._replace(frame)
        elif frame.epoch == self._epoch and frame.seq == self._seq + 1 and frame.kind == "delta":
            self._seq = frame.seq
            self._apply(frame.upserts, frame.removals)
        elif (frame.epoch, frame.seq) != (self._epoch, self._seq) and not self._stale(frame):
            self._ask_again()

    def _stale(self, frame: Frame[T]) -> bool:
        return frame.epoch == self._epoch and frame.seq <= self._seq

    def _replace(self, frame: Frame[T]) -> None:
        if self._stale(frame):
            return
        self._epoch, self._seq = frame.epoch, frame.seq
        self._first = self._first or not self.complete
        self.complete = True
        gone = self.state.keys() - frame.upserts.keys()
        state = self.state
        changed = {k: v for k, v in frame.upserts.items() if k not in state or state[k] != v}
        self._apply(changed, gone)

    def _apply(self, upserts: dict[str, T], removals: Any) -> None:
        for key in removals:
            if self.state.pop(key, None) is not None:
                self._upserts.pop(key, None)
                self._removals.add(key)
        self.state.update(upserts)
        self._upserts.update(upserts)
        self._removals.difference_update(upserts)

    def _ask_again(self) -> None:
        """A message was lost: a new subscription makes the producer send the whole state."""
        if self._asked:
            return
        self._asked = True
        self._socket.unsubscribe(self._name)
        self._socket.subscribe(self._name)
        self._loop.call_later(RESUBSCRIBE_GAP, self._may_ask)

    def _may_ask(self) -> None:
        self._asked = False

    def _report(self) -> None:
        if not (self._first or self._upserts or self._removals):
            return
        change = Change(self._upserts, frozenset(self._removals))
        self._upserts, self._removals, self._first = {}, set(), False
        self._on_change(change)
