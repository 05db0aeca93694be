"""The event loop of a worker: bus sockets, file descriptors and timers, on one thread.

Callbacks must not block. Other threads hand work over with ``post``, the only method that is
safe to call from them.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

Callback = Callable[[], None]


class Timer:
    """A callback to come. ``cancel`` may be called at any time, also from within it."""

    __slots__ = ("active", "callback", "due", "period")

    def __init__(self, due: float, callback: Callback, period: float = 0.0) -> None:
        self.due = due
        self.callback = callback
        self.period = period
        self.active = True

    def cancel(self) -> None:
        self.active = False


class Loop:
    """Runs until ``stop``. An exception that leaves a callback goes to ``on_error``, or ends the loop."""

    def __init__(self, on_error: Callable[[Exception], None] | None = None) -> None:
        self.context = zmq.Context()
        self._poller = zmq.Poller()
        self._readers: dict[Any, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._after: deque[Callback] = deque()
        self._posted: deque[Callback] = deque()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._running = False
        self._on_error = on_error
        self._closers: list[Callback] = []
        self.add_reader(self._wake_r, self._drain)

    def add_reader(self, source: Any, callback: Callback) -> None:
        """Call ``callback`` while ``source`` (a file descriptor or a bus socket) can be read."""
        self._readers[source] = callback
        self._poller.register(source, zmq.POLLIN)

    def remove_reader(self, source: Any) -> None:
        if self._readers.pop(source, None) is not None:
            self._poller.unregister(source)

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Call once, ``delay`` seconds from now."""
        return self._schedule(Timer(time.monotonic() + delay, callback))

    def call_every(self, period: float, callback: Callback, first: float | None = None) -> Timer:
        """Call every ``period`` seconds, for the first time after ``first`` (default: one period)."""
        delay = period if first is None else first
        return self._schedule(Timer(time.monotonic() + delay, callback, period))

    def call_soon(self, callback: Callback) -> None:
        """Call once this round's sockets have been served: the place to act on a batch of changes."""
        self._after.append(callback)

    def post(self, callback: Callback) -> None:
        """Hand ``callback`` to the loop's thread; safe from any thread and from signal handlers."""
        self._posted.append(callback)
        with contextlib.suppress(OSError):  # full: awake already; closed: over
            os.write(self._wake_w, b"x")

    def stop(self) -> None:
        """End ``run`` after the current round; safe from any thread and from signal handlers."""
        self.post(self._end)

    def run(self) -> None:
        """Serve until ``stop``."""
        self._running = True
        while self._running:
            self._round()

    def run_for(self, seconds: float) -> None:
        """Serve for a while; for tests and for programs that wait for one thing."""
        end = self.call_later(seconds, self._end)
        self.run()
        end.cancel()

    def close(self) -> None:
        """Close the bus sockets, which say themselves for how long their last messages may take, and the
        loop."""
        os.close(self._wake_r)
        os.close(self._wake_w)
        self.context.destroy()
        while self._closers:
            self._closers.pop()()

    def at_close(self, callback: Callback) -> None:
        """Call once the loop is closed: for what must live exactly as long."""
        self._closers.append(callback)

    def _end(self) -> None:
        self._running = False

    def _schedule(self, timer: Timer) -> Timer:
        heapq.heappush(self._timers, (timer.due, next(self._count), timer))
        return timer

    def _round(self) -> None:
        ready = [(source, self._readers.get(source)) for source, _ in self._poller.poll(self._timeout())]
        for source, callback in ready:
            # A callback before this one may have closed the descriptor, and another file have its number.
            if callback is not None and self._readers.get(source) is callback:
                self._call(callback)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if not timer.active:
                continue
            if timer.period:
                timer.due += timer.period * max(1, math.ceil((now - timer.due) / timer.period))
                self._schedule(timer)
            else:
                timer.active = False
            self._call(timer.callback)
        for _ in range(len(self._after)):
            self._call(self._after.popleft())

    def _timeout(self) -> int | None:
        """Milliseconds until something is due, None for never."""
        if self._after:
            return 0
        while self._timers and not self._timers[0][2].active:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0, int((self._timers[0][0] - time.monotonic()) * 1000) + 1)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)
        for _ in range(len(self._posted)):
            self._call(self._posted.popleft())

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except Exception as e:
            if self._on_error is None:
                raise
            self._on_error(e)
