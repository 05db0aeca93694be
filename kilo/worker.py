"""What every worker runs in: its loop, its outlet on the bus, its log, and its report about itself.

A worker is a class with ``start`` and ``stop``; ``run`` gives it a Context and keeps it going.
SIGTERM and SIGINT end it with its clean-up, SIGHUP without (a restart), and so does the death of
the parent: what was set up in the kernel stays.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from kilo.bus import Change, Loop, Publisher, Subscription, Timer, Topic, state_of
from kilo.bus.publisher import Outlet
from kilo.config import Config
from kilo.errors import KiloError, PermanentError, TemporaryError
from kilo.log import Logger
from kilo.model.host import Failure, WorkerState

T = TypeVar("T")
HEARTBEAT = 1.0
MEASURE_EVERY = 5
EXIT_PERMANENT = 2
EXIT_CRASH = 1


class Worker(Protocol):
    """What a worker package provides, as ``Worker(context)``."""

    def start(self) -> None:
        """Subscribe, publish, set timers. Must not block; may raise PermanentError."""

    def stop(self, clean_up: bool) -> None:
        """Last words. With ``clean_up``, undo what this worker did to the world, as the flags say."""


class Reporter:
    """What a worker says about itself: failures by a stable key, error counts, gauges, facts."""

    def __init__(self, worker: str, log: Logger) -> None:
        self._log = log
        self._worker = worker
        self._started = time.time()
        self._beat = 0
        self._measured: tuple[float, int, int] = (0.0, 0, 0)
        self.phase = "starting"
        self.failing: dict[str, Failure] = {}
        self.errors: dict[str, int] = {}
        self.gauges: dict[str, float] = {}
        self.info: dict[str, str] = {}

    def ready(self) -> None:
        """This worker does its job from now on."""
        if self.phase != "ready":
            self.phase = "ready"
            self._log.info("ready")

    def count(self, event: str) -> None:
        """One more error of ``event`` in kilo_errors_total."""
        self.errors[event] = self.errors.get(event, 0) + 1

    def fail(self, key: str, message: str, event: str = "apply") -> None:
        """``key`` does not work: counted every time, logged when the message is new."""
        self.count(event)
        old = self.failing.get(key)
        if old is None or old.message != message:
            self._log.error(message, failing=key)
            since = old.since if old else int(time.time())
            self.failing[key] = Failure(message, since)

    def mend(self, key: str) -> None:
        """``key`` works again, or is no longer wanted."""
        if self.failing.pop(key, None) is not None:
            self._log.info("works again", failing=key)

    def snapshot(self) -> WorkerState:
        if self._beat % MEASURE_EVERY == 0:
            self._measured = measure()
        self._beat += 1
        cpu, resident, fds = self._measured
        return WorkerState(
            worker=self._worker,
            pid=os.getpid(),
            started=self._started,
            phase=self.phase,
            beat=self._beat,
            cpu_seconds=cpu,
            resident_bytes=resident,
            open_fds=fds,
            failing=dict(self.failing),
            errors=dict(self.errors),
            gauges=dict(self.gauges),
            info=dict(self.info),
        )


def measure() -> tuple[float, int, int]:
    """CPU seconds, resident bytes and open descriptors of this process."""
    with open("/proc/self/statm", "rb") as f:
        resident = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return time.process_time(), resident, len(os.listdir("/proc/self/fd"))


class Context:
    """All that a worker is given. The ``log`` also is the log of its adapters."""

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self.config = config
        self.log = Logger(name, config.log_level)
        self.report = Reporter(name, self.log)
        self.loop = Loop(on_error=self._on_error)
        self._outlet = Outlet(self.loop, config.run_dir, name)
        self.state: Publisher[WorkerState] = self.publish(state_of(name))

    def publish(self, topic: Topic[T]) -> Publisher[T]:
        """The publisher of one of this worker's own topics."""
        return self._outlet.publish(topic)

    def subscribe(self, topic: Topic[T], on_change: Callable[[Change[T]], None]) -> Subscription[T]:
        """Follow a topic, of any worker. ``on_change`` runs on the loop."""
        return Subscription(self.loop, self.config.run_dir, topic, on_change, self._on_bad)

    def beat(self) -> None:
        self.state.put("state", self.report.snapshot())
        self.state.flush()

    def heartbeats(self) -> Timer:
        return self.loop.call_every(HEARTBEAT, self.beat, first=0)

    def _on_bad(self, topic: str, reason: str) -> None:
        self.report.count("bus")
        self.log.warn("message dropped", topic=topic, reason=reason)

    def _on_error(self, error: Exception) -> None:
        """An exception nobody expected in a callback: counted and logged, and the loop goes on."""
        if isinstance(error, PermanentError):
            raise error
        self.report.count("internal")
        trace = "" if isinstance(error, KiloError) else "".join(traceback.format_exception(error))
        self.log.error(f"{type(error).__name__}: {error}", trace=trace)


def run(name: str, factory: Callable[[Context], Worker], config: Config, parent_alive: Any = None) -> int:
    """Run a worker until it is told to end; its exit status.

    ``parent_alive``: a descriptor that becomes readable when the parent is gone, or None.
    """
    clean_up = False
    try:
        context = Context(name, config)
    except (PermanentError, TemporaryError) as e:
        print(f"kg {name}: {e}", file=sys.stderr)
        return EXIT_PERMANENT if isinstance(e, PermanentError) else EXIT_CRASH
    loop, log = context.loop, context.log

    def end(number: int, frame: object) -> None:
        nonlocal clean_up
        if number != signal.SIGHUP and clean_up:
            os._exit(EXIT_CRASH)
        clean_up = number != signal.SIGHUP
        loop.stop()

    def orphaned() -> None:
        log.warn("the parent is gone; ending, the data plane stays")
        loop.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    if parent_alive is not None:
        loop.add_reader(parent_alive, orphaned)
    try:
        worker = factory(context)
        context.heartbeats()
        worker.start()
        loop.run()
        context.report.phase = "stopping"
        context.beat()
        worker.stop(clean_up)
    except PermanentError as e:
        log.error(str(e))
        print(f"kg {name}: {e}", file=sys.stderr)
        return EXIT_PERMANENT
    except Exception:  # noqa: BLE001 - the main loop
        log.error("worker died", trace=traceback.format_exc())
        return EXIT_CRASH
    log.info("ended", clean_up=clean_up)
    loop.close()
    return 0
