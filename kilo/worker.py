"""What every worker runs in: its loop, its outlet on the bus, its log, and its report about itself.

A worker is a class with ``start`` and ``stop``; ``run`` gives it a Context and keeps it going.
Alone, SIGTERM and SIGINT end it with its clean-up, SIGHUP without (a restart). Under a parent its
orders come over a leash (see kilo.leash); the parent's death ends it too, and what was set up in the
kernel stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Protocol, TypeVar

from kilo.bus import Change, Loop, Publisher, Subscription, Timer, Topic, state_of
from kilo.bus.publisher import Outlet
from kilo.config import Config
from kilo.errors import KiloError, PermanentError, TakenError, TemporaryError
from kilo.leash import CLEANED, END, GO, HOLD, LEVEL_ORDERS, QUIT, STARTED, TAKEN
from kilo.log import Logger, complain
from kilo.model.host import Failure, Sandbox, WorkerState
from kilo.sandbox import Confined, Places, read_status, shown

T = TypeVar("T")
HEARTBEAT = 1.0
LOOK_EVERY = 2.0
"""Seconds between two looks at whether a confined worker's paths still are what they were."""
MEASURE_EVERY = 5
EXIT_PERMANENT = 2
EXIT_CRASH = 1
EXIT_UNLOADED = 3
"""Its code cannot be loaded."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAME_SIGNAL = 0.2
"""Seconds within which a second signal is the first one's echo: ``timeout`` and terminals send it to the
program, and to its whole process group."""
PARENT_ANSWERS = 1.0
"""Seconds that a worker that gets a signal waits for what its parent has to say about it."""


class Worker(Protocol):
    """What a worker package provides, as ``Worker(context)``.

    The loop may run before ``start``, for as long as the parent makes it wait: the constructor asks
    for nothing that would make it act.
    """

    def start(self) -> None:
        """Subscribe, publish, set timers. Must not block; may raise PermanentError."""

    def stop(self, clean_up: bool) -> None:
        """Last words. With ``clean_up``, undo what this worker, in this or an earlier life, did to the
        world, as the flags say. It may come without ``start``."""


class Reporter:
    """What a worker says about itself: failures by a stable key, error counts, gauges, facts."""

    def __init__(self, worker: str, log: Logger) -> None:
        self._log = log
        self._worker = worker
        self._started = time.time()
        self._beat = 0
        self._measured: tuple[float, int, int] = (0.0, 0, 0)
        self.phase = "starting"
        self.on_ready: Callable[[], object] = lambda: None
        self.failing: dict[str, Failure] = {}
        self.errors: dict[str, int] = {}
        self.gauges: dict[str, float] = {}
        self.info: dict[str, str] = {}
        self.sandbox: Sandbox | None = None

    def ready(self) -> None:
        """This worker does its job from now on."""
        if self.phase != "ready":
            self.phase = "ready"
            self._log.info("ready")
            self.on_ready()

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
        if self._log.dropped:
            self.errors["log"] = self._log.dropped
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
            sandbox=self.sandbox,
        )


def measure() -> tuple[float, int, int]:
    """CPU seconds, resident bytes and open descriptors of this process."""
    with open("/proc/self/statm", "rb") as f:
        resident = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return time.process_time(), resident, len(os.listdir("/proc/self/fd"))


def until_next(period: float) -> float:
    """Seconds until the next whole ``period`` of the host's monotonic clock: timers that begin there are due
    together, in all processes, which costs fewer wake-ups, of those that hear of it too."""
    return period - time.monotonic() % period


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
        self.report.on_ready = lambda: self.loop.call_soon(self.beat)  # somebody may wait for it

    def publish(self, topic: Topic[T]) -> Publisher[T]:
        """The publisher of one of this worker's own topics."""
        return self._outlet.publish(topic)

    def subscribe(self, topic: Topic[T], on_change: Callable[[Change[T]], None]) -> Subscription[T]:
        """Follow a topic, of any worker. ``on_change`` runs on the loop."""
        return Subscription(self.loop, self.config.run_dir, topic, on_change, self._on_bad)

    def beat(self) -> None:
        if self._outlet.refused:
            self.report.errors["refused"] = self._outlet.refused
        self.state.put("state", self.report.snapshot())
        self.state.flush()

    def heartbeats(self) -> Timer:
        self.loop.call_soon(self.beat)
        return self.loop.call_every(HEARTBEAT, self.beat, first=until_next(HEARTBEAT))

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


class _Life:
    """When a worker starts and ends: what signals, the parent, or its death say, kept until it is due.

    Alone, a worker obeys signals at once. Under a parent it obeys the parent: a signal that the whole
    process group got has reached the parent too, and its order will come when it is this worker's turn.
    """

    def __init__(self, context: Context, leash: int | None) -> None:
        self.ending = False
        self.clean_up = False
        self.going = leash is None
        self._held = False
        self._leash = leash
        self._log = context.log
        self._loop = context.loop
        self._since = 0.0
        for number in ENDING:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        if leash is not None:
            self._loop.add_reader(leash, self._on_order)

    def end(self, clean_up: bool) -> None:
        """Leave the loop; the last word that comes before the clean-up begins decides about it."""
        self.ending, self.clean_up = True, clean_up
        self._loop.stop()

    def keep_to(self, places: Places) -> None:
        """End, to be started again, when what this process may use was replaced by something else."""

        def look() -> None:
            if not self.ending and (path := places.moved()):
                self._log.warn("another file was put there, or closed to us; ending for a restart", path=path)
                self.end(clean_up=False)

        self._loop.call_every(LOOK_EVERY, look, first=until_next(LOOK_EVERY))

    def say(self, word: bytes) -> None:
        """To the parent, if there is one."""
        if self._leash is not None:
            with contextlib.suppress(OSError):
                os.write(self._leash, word)

    def _on_signal(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._leash is not None:
            self._loop.post(self._await_parent)
        elif not self.ending:
            self._since = now
            self.end(number != signal.SIGHUP)
        elif now - self._since > SAME_SIGNAL:
            self._log.warn("a signal while it ends; not waiting", signal=signal.Signals(number).name)
            os._exit(EXIT_CRASH)

    def _await_parent(self) -> None:
        self._loop.call_later(PARENT_ANSWERS, self._unanswered)

    def _unanswered(self) -> None:
        if not self._held and not self.ending:
            self._log.warn("a signal of somebody else than the parent; ending for a restart")
            self.end(clean_up=False)

    def _on_order(self) -> None:
        assert self._leash is not None  # noqa: S101 - it is what is read
        orders = b""
        with contextlib.suppress(OSError):  # reset: what we said last was not read any more
            orders = os.read(self._leash, 64)
        for order in (orders[i : i + 1] for i in range(len(orders))):
            if order in (END, QUIT):
                self.end(order == END)
            elif order == HOLD:
                self._held = True
            elif order in LEVEL_ORDERS:
                self._log.level = LEVEL_ORDERS[order]
            elif order == GO and not self.going:
                self.going = True
                self._loop.stop()
        if not orders:
            self._loop.remove_reader(self._leash)
            if not self.ending:
                self._log.warn("the parent is gone; ending, the data plane stays")
                self.end(clean_up=False)


def _tell_rights(context: Context, life: _Life, confined: Confined | None) -> None:
    """Report what this process may, and keep to what it was restricted to."""
    context.report.sandbox = confined.sandbox if confined else shown(read_status())
    if confined:
        if confined.places:
            life.keep_to(confined.places)
        if refused := confined.sandbox.refused:
            context.log.warn("not all is restricted that should be; going on", refused=list(refused))


def run(
    name: str,
    factory: Callable[[Context], Worker],
    config: Config,
    leash: int | None = None,
    only_clean_up: bool = False,
    confined: Confined | None = None,
) -> int:
    """Run a worker until it is told to end; its exit status.

    ``leash``: this worker's end of the line to its parent, None if it runs alone. ``only_clean_up``: it
    does not start, but cleans up after earlier ones. ``confined``: what this process was restricted to.
    """
    try:
        context = Context(name, config)
    except (PermanentError, TemporaryError) as e:
        complain(f"kg {name}: {e}")
        return EXIT_PERMANENT if isinstance(e, PermanentError) else EXIT_CRASH
    life = _Life(context, leash)
    _tell_rights(context, life, confined)
    if only_clean_up:
        life.end(clean_up=True)
    try:
        worker = factory(context)
        if not life.going:
            context.loop.run()
        if not life.ending:
            context.heartbeats()
            worker.start()
            life.say(STARTED)
        if not life.ending:
            context.loop.run()
        context.report.phase = "stopping"
        context.beat()
        clean_up = life.clean_up
        worker.stop(clean_up)
    except PermanentError as e:
        context.log.error(str(e))
        complain(f"kg {name}: {e}")
        return EXIT_PERMANENT
    except TemporaryError as e:
        if isinstance(e, TakenError):
            life.say(TAKEN)
        context.log.error(str(e))
        complain(f"kg {name}: {e}")
        return EXIT_CRASH
    except Exception:  # noqa: BLE001 - the main loop
        context.log.error("worker died", trace=traceback.format_exc())
        return EXIT_CRASH
    if clean_up:
        life.say(CLEANED)
    context.log.info("ended", clean_up=clean_up)
    context.loop.close()
    return 0
