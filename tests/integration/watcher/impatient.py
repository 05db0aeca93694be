"""Watchers that wait for little, or to which something has happened: for processes of their own, which need
not import what tests do."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import tenacity

from kilo.watcher import announcer, plugin, session, stream, worker
from kilo.watcher.client import Api
from kilo.watcher.worker import WatcherWorker
from kilo.worker import Context
from tests.clock import Given


def soon_away(context: Context) -> WatcherWorker:
    """One that soon believes that the server is away, and soon asks again."""
    worker.UNREACHABLE_AFTER, worker.JUDGE_EVERY = 1.5, 0.2
    stream._exponential = tenacity.wait_random_exponential(multiplier=stream.FIRST_PAUSE, max=1.0)
    return WatcherWorker(context)


def with_slow_names(context: Context) -> WatcherWorker:
    """One whose resolver takes a while. Connections ask for streams, and are as fast as ever."""
    ask = socket.getaddrinfo

    def slow(*name: Any, **hints: Any) -> Any:
        time.sleep(0.5 if hints.get("type") == socket.SOCK_DGRAM else 0)
        return ask(*name, **hints)

    socket.getaddrinfo = slow
    worker.HOLD_FOR_NAMES = 10.0
    return WatcherWorker(context)


def hasty(context: Context) -> WatcherWorker:
    """A watcher that has little patience."""
    plugin.TIMEOUT, session.EARLY, session.AGAIN_AFTER = 0.5, 0.0, 0.3
    worker.CHECK_IN_WITHIN, worker.JUDGE_EVERY, announcer.CHECK_IN_EVERY = 1.5, 0.2, 0.4
    return WatcherWorker(context)


def stuck(context: Context) -> WatcherWorker:
    """One whose patches never come back, by whatever mishap."""
    Api.patch = lambda *arguments: threading.Event().wait()  # type: ignore[method-assign,assignment]
    return hasty(context)


def dead(context: Context) -> WatcherWorker:
    """One whose announcer dies."""
    made = hasty(context)
    made._announcer._thread = threading.Thread(target=lambda: None)
    return made


def watched(context: Context) -> WatcherWorker:
    """One that says for how long its loop was ever held up: by waiting, or by another thread's work."""
    made, gauges, clock = hasty(context), context.report.gauges, Given()
    clock.__enter__()
    before = [(clock.seconds, time.process_time())]

    def look() -> None:
        now = clock.seconds, time.process_time()
        gaps = (new - old for new, old in zip(now, before[0], strict=True))
        gauges["longest"], before[0] = max(gauges.get("longest", 0.0), *gaps), now

    context.loop.call_every(0.02, look)
    return made
