"""Drawings of the topology, by graphviz's ``dot``: the only program that this worker runs.

One at a time, at low priority, within limits of time, memory and size; a drawing, and a failure to
draw, is kept until the topology changes. ``draw`` is called in the server's threads.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kilo.errors import KiloError, PermanentError, TemporaryError

LAYOUTS = ("circo", "dot", "neato", "twopi", "fdp")
FORMATS = {"svg": "image/svg+xml", "png": "image/png", "json": "application/json"}
PROGRAM = "dot"
PACKAGE = "graphviz"
TIME_LIMIT = 10.0
WAIT_LIMIT = 5.0
SIZE_LIMIT = 32 << 20
MEMORY_LIMIT = 1 << 30
KEPT_MAX = 8
KEPT_BYTES = 8 << 20
NICE = 10


class NotInstalled(PermanentError):
    """There is no graphviz on this host."""


class Busy(TemporaryError):
    """Another drawing is being made."""


class CannotDraw(KiloError):
    """The program gave up on this graph; the text says why."""


@dataclass(frozen=True)
class Order:
    """What to draw: which version of the topology, with which layout, in which of FORMATS."""

    version: int
    layout: str
    format: str


class Artist:
    """Draws, and remembers what it drew. Safe to use from several threads."""

    def __init__(
        self, program: str = PROGRAM, time_limit: float = TIME_LIMIT, wait_limit: float = WAIT_LIMIT
    ) -> None:
        self._program = program
        self._time_limit = time_limit
        self._wait_limit = wait_limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[Order, bytes | CannotDraw] = OrderedDict()

    @property
    def installed(self) -> bool:
        return shutil.which(self._program) is not None

    def draw(self, order: Order, source: Callable[[], str]) -> bytes:
        """The drawing of the graph that ``source`` gives in the DOT language.

        Raises NotInstalled, Busy, CannotDraw.
        """
        if not self._lock.acquire(timeout=self._wait_limit):
            raise Busy("another drawing is being made")
        try:
            found = self._recall(order)
            if found is None:
                found = self._make(order, source().encode())
                self._keep(order, found)
        finally:
            self._lock.release()
        if isinstance(found, CannotDraw):
            raise CannotDraw(str(found))
        return found

    def _make(self, order: Order, source: bytes) -> bytes | CannotDraw:
        program = shutil.which(self._program)
        if program is None:
            raise NotInstalled(
                f"{self._program} is not installed here (Debian: apt install {PACKAGE}); "
                "format=dot gives the graph as text"
            )
        try:
            return run([program, f"-K{order.layout}", f"-T{order.format}"], source, self._time_limit)
        except CannotDraw as e:
            return e

    def _recall(self, order: Order) -> bytes | CannotDraw | None:
        found = self._kept.get(order)
        if found is not None:
            self._kept.move_to_end(order)
        return found

    def _keep(self, order: Order, found: bytes | CannotDraw) -> None:
        for old in [old for old in self._kept if old.version != order.version]:
            del self._kept[old]
        self._kept[order] = found
        while len(self._kept) > KEPT_MAX or self._size() > KEPT_BYTES:
            self._kept.popitem(last=False)

    def _size(self) -> int:
        return sum(len(found) for found in self._kept.values() if isinstance(found, bytes))


def run(command: list[str], source: bytes, time_limit: float) -> bytes:
    """The output of a program that draws. Raises CannotDraw."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # SERVER_NAME makes graphviz read no image files.
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "SERVER_NAME": "kilo"},
            cwd="/",
            start_new_session=True,
        )
    except OSError as e:
        raise CannotDraw(f"cannot run {command[0]}: {e.strerror} (errno {e.errno})") from e
    timed_out = threading.Event()

    def end() -> None:
        timed_out.set()
        _kill(process)

    deadline = threading.Timer(time_limit, end)
    deadline.start()
    try:
        _restrict(process.pid)
        output = _talk(process, source)
    finally:
        deadline.cancel()
        _kill(process)
        status = process.wait()
    if timed_out.is_set():
        raise CannotDraw(f"it took more than {time_limit:g} s; another layout, or format=dot, may serve")
    if len(output) > SIZE_LIMIT:
        raise CannotDraw(f"the drawing is larger than {SIZE_LIMIT >> 20} MiB")
    if status:
        raise CannotDraw(f"{command[0]} ended with status {status}")
    return output


def _restrict(pid: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
        resource.prlimit(pid, resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def _talk(process: subprocess.Popen[bytes], source: bytes) -> bytes:
    """Write all, then read all up to the limit; graphviz reads its whole input before it writes."""
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        return b""
    with stdout:
        with contextlib.suppress(OSError), stdin:
            stdin.write(source)
        return stdout.read(SIZE_LIMIT + 1)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
