"""One worker as the parent sees it: its process, its heartbeat, its lives so far."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess

from kilo.bus import Change, Loop, Subscription, Timer, state_of
from kilo.config import Config
from kilo.leash import CLEANED, END, GO, LEVEL_ORDERS, QUIT, STARTED, TAKEN
from kilo.log import Logger
from kilo.model.host import WorkerState
from kilo.sandbox.profiles import closed_code
from kilo.sockets import take_no_descriptors
from kilo.supervisor.backoff import Backoff
from kilo.supervisor.forkserver import ensure_running
from kilo.worker import EXIT_UNLOADED

RESTART_GRACE = 5.0
"""Seconds a worker has to end when it is to be restarted; then it is killed."""
START_LIMIT = 30.0
"""Seconds a worker may take to its first heartbeat."""
HANG_LIMIT = 15.0
"""Seconds without a heartbeat after which a worker counts as hung."""


def _nobody(name: str) -> None:
    pass


Target = Callable[[str, Config, Connection], None]


@dataclass(frozen=True)
class Launcher:
    """Makes processes that run ``target(name, config, leash)``."""

    context: ForkServerContext
    target: Target

    def process(self, name: str, config: Config, leash: Connection) -> ForkServerProcess:
        ensure_running()
        return self.context.Process(target=self.target, args=(name, config, leash), name=name)


class WorkerProcess:
    """Keeps one worker running. ``on_permanent`` is called with its name when it says, by exit status 2
    before it has ever run, that starting it again will not help; ``on_started`` when its configuration
    is good; ``on_ended`` at each end of its process, or when none could be started."""

    def __init__(self, name: str, config: Config, loop: Loop, log: Logger, launcher: Launcher) -> None:
        self.name = name
        self.restarts = 0
        self.last_error = ""
        self.state: WorkerState | None = None
        self.heard = 0.0
        self.wanted = True
        self.cleaned = False
        """The last process has done its clean-up."""
        self.taken = False
        """When it was last tried, another agent did this worker's work on this host."""
        self.on_permanent: Callable[[str], None] = _nobody
        self.on_started: Callable[[str], None] = _nobody
        self.on_ended: Callable[[str], None] = _nobody
        self._config = config
        self._loop = loop
        self._log = log.bind(worker=name)
        self._launcher = launcher
        self._backoff = Backoff()
        self._process: ForkServerProcess | None = None
        self._leash: Connection | None = None
        self._pidfd = -1
        self._began = 0.0
        self._planned: Timer | None = None
        self._level = b""
        self._asked_to_end = False
        self._hung = False
        self._started = False
        self._proven = False
        """An earlier process has started well, or this one was ready: its configuration was good once."""
        Subscription(loop, config.run_dir, state_of(name), self._on_state)

    @property
    def pid(self) -> int:
        """The process id, 0 while there is none."""
        return (self._process.pid or 0) if self._process else 0

    @property
    def phase(self) -> str:
        """``down``, or what the process says of itself: starting, ready or stopping."""
        if not self.pid:
            return "down"
        return self.state.phase if self.state is not None else "starting"

    @property
    def started(self) -> bool:
        """Whether this process, or one before it, has found its configuration good."""
        return self._started or self._proven

    @property
    def uptime(self) -> float:
        return time.monotonic() - self._began if self._process else 0.0

    def start(self, order: bytes | None = GO) -> None:
        """Start the process now, with its first order; None: that comes later. A failure counts as a
        life of no length."""
        if self._planned is not None:
            self._planned.cancel()
            self._planned = None
        self.state, self.cleaned = None, False
        self._asked_to_end = self._hung = self._started = False
        self._began = self.heard = time.monotonic()
        ours, theirs = self._launcher.context.Pipe()
        with socket.fromfd(ours.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
            take_no_descriptors(end)
        try:
            process = self._launcher.process(self.name, self._config, theirs)
            process.start()
            self._pidfd = os.pidfd_open(process.pid or 0)
        except (OSError, EOFError) as e:
            ours.close()
            self.last_error = f"cannot start: {e}"
            self._log.error(self.last_error)
            self.on_ended(self.name)
            self._again(0.0)
            return
        finally:
            theirs.close()
        self._process, self._leash = process, ours
        os.set_blocking(ours.fileno(), False)
        self._loop.add_reader(ours.fileno(), self._on_word)
        self._loop.add_reader(self._pidfd, self._on_exit)
        if order is not None:
            self.tell(order)
        self.tell(self._level)
        self._log.debug("started", pid=process.pid)

    def set_level(self, level: str) -> None:
        """Log from this level on, in this process and in those that follow it."""
        self._level = next(order for order, name in LEVEL_ORDERS.items() if name == level)
        self.tell(self._level)

    def tell(self, order: bytes) -> None:
        """Give the process an order, if there is one."""
        if self._leash is not None:
            with contextlib.suppress(OSError):
                os.write(self._leash.fileno(), order)

    def _signal(self, number: int) -> None:
        """Send a signal to the process, if there is one; never to another that has its number."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def restart(self) -> None:
        """End the process without clean-up, and start it again at once."""
        if self._process is None:
            self.start()
            return
        self._asked_to_end = True
        self.tell(QUIT)
        process = self._process
        self._loop.call_later(RESTART_GRACE, lambda: self._insist(process))

    def _insist(self, process: ForkServerProcess) -> None:
        if self._process is process:
            self._log.warn("did not end in time for its restart; killed", pid=self.pid)
            self._signal(signal.SIGKILL)

    def end(self, order: bytes = END) -> None:
        """The process is not wanted any more. If there is none, nothing happens."""
        self.wanted = False
        self.tell(order)

    def check(self) -> None:
        """Kill the process if it hangs; called about once a second."""
        if self._process is None:
            return
        limit = HANG_LIMIT if self.state is not None else START_LIMIT
        silent = time.monotonic() - self.heard
        if silent > limit:
            self._hung = True
            self.last_error = f"hung: no heartbeat for {silent:.0f} s"
            self._log.error(self.last_error, pid=self.pid)
            self._signal(signal.SIGKILL)
            self.heard = time.monotonic()

    def kill(self) -> None:
        self.wanted = False
        self._signal(signal.SIGKILL)

    def _on_state(self, change: Change[WorkerState]) -> None:
        state = change.upserts.get("state")
        if state is not None and state.pid == self.pid:
            self.state = state
            self.heard = time.monotonic()
            self._proven = self._proven or state.phase == "ready"

    def _on_word(self) -> None:
        assert self._leash is not None  # noqa: S101 - the reader is removed with it
        try:
            words = os.read(self._leash.fileno(), 64)
        except BlockingIOError:
            return
        except OSError:  # reset: it ended before it had read all that it was told
            words = b""
        if not words:
            self._drop_leash()
        if CLEANED in words:
            self.cleaned = True
        self.taken = TAKEN in words or self.taken
        if STARTED in words:
            self._started, self.taken = True, False
            self.on_started(self.name)

    def _drop_leash(self) -> None:
        if self._leash is not None:
            self._loop.remove_reader(self._leash.fileno())
            self._leash.close()
            self._leash = None

    def _on_exit(self) -> None:
        process = self._process
        assert process is not None  # noqa: S101 - the reader is removed with the process
        if self._leash is not None:
            self._on_word()  # its last words, before its end is judged
        self._drop_leash()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd, self._process = -1, None
        process.join(1)
        status = process.exitcode
        process.close()
        lived = time.monotonic() - self._began
        proven, self._proven = self._proven, self._proven or self._started
        if self._asked_to_end or not self.wanted:
            self._log.debug("ended", status=status)
        else:
            self._note_end(status, lived)
        self.on_ended(self.name)
        if not self.wanted:
            return
        if status == 2 and not proven:
            self.last_error = "cannot run; its last message says why"
            self.on_permanent(self.name)
        elif self._asked_to_end:
            self.restarts += 1
            self.start()
        else:
            self.restarts += 1
            self._again(lived)

    def _note_end(self, status: int | None, lived: float) -> None:
        killed = status is not None and status < 0
        how = f"killed by signal {-status}" if killed and status else f"exit status {status}"
        if status == 2:
            how += ", it cannot run as things are; its last message says why"
        if status == EXIT_UNLOADED:
            how += ", its code cannot be loaded; its last message says why"
            if closed := closed_code(self._config):
                how += f"; closed to it is {', '.join(closed)}"
        if not self._hung:
            self.last_error = f"ended after {lived:.1f} s: {how}"
        self._log.warn("worker ended", status=status, lived=round(lived, 1))

    def _again(self, lived: float) -> None:
        if self.wanted:
            delay = self._backoff.delay(lived, random.random())  # noqa: S311 - jitter
            self._planned = self._loop.call_later(delay, self._start_planned)

    def _start_planned(self) -> None:
        self._planned = None
        if self.wanted:
            self.start()
