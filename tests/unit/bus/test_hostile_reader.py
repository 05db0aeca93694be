"""Subscribers that do what none would: the producer stays, stays small, and serves the others meanwhile."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from kilo.bus import PLAN, Loop, Publisher, Subscription, door
from kilo.bus.publisher import Outlet
from kilo.bus.wire import encode
from kilo.bus.zmtp import GREETING
from kilo.model.plan import PlanItem, Route

READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
WANTED = b"\x00\x05\x01plan"
MEMORY = 16 << 20
"""Bytes that the process may grow by, whatever is sent to it."""


class Bus:
    """A producer and a lawful subscriber on one loop, and whether the loop ever stood still."""

    def __init__(self, run_dir: Path) -> None:
        self.loop = Loop()
        self.path = str(run_dir / "mesh/bus.sock")
        self.outlet = Outlet(self.loop, str(run_dir), "mesh")
        self.plan: Publisher[PlanItem] = self.outlet.publish(PLAN)
        self.plan.flush()
        self.follower = Subscription(self.loop, str(run_dir), PLAN, lambda change: None)
        self.longest = 0.0
        self._number = 0
        self.run(0.3)
        assert self.follower.complete

    def run(self, seconds: float) -> None:
        """Serve, and note the longest time without a turn."""
        end = time.monotonic() + seconds
        last = time.monotonic()
        while last < end:
            self.loop.run_for(0.01)
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now

    def change(self) -> None:
        self._number += 1
        self.plan.put("n", Route("10.2.0.0/24", "wireguard", table=self._number))
        self.plan.flush()

    def much(self) -> None:
        """From now on, the whole of the topic is more than a megabyte."""
        networks = [f"10.{n >> 8 & 255}.{n & 255}.0/24" for n in range(20_000)]
        self.plan.replace({f"route/{n:030}": Route(n, "wireguard") for n in networks})
        self.plan.flush()

    def hears(self, seconds: float) -> bool:
        """Whether the subscriber is told of a change in that time."""
        self.change()
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.follower.state != self.plan.state:
            self.run(0.02)
        return self.follower.state == self.plan.state


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    bus = Bus(tmp_path)
    yield bus
    bus.loop.close()


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def connected(path: str, words: bytes = b"") -> socket.socket:
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(2)
    caller.connect(path)
    caller.sendall(words)
    return caller


def flood(path: str, words: bytes, seconds: float, done: list[float]) -> None:
    """Introduce oneself, and say ``words`` for as long as one may, again and again. ``done``: bytes sent."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError), connected(path, GREETING + READY) as caller:
            caller.recv(len(GREETING))
            while time.monotonic() < end:
                caller.sendall(words)
                done.append(len(words))


@pytest.mark.parametrize("kind", ["one topic", "made up", "unwanted"])
def test_who_asks_without_end_is_cut_off(bus: Bus, kind: str) -> None:
    made_up = b"".join(b"\x00\x3f\x01" + os.urandom(62) for _ in range(2000))
    words = {"one topic": WANTED * 20_000, "made up": made_up, "unwanted": b"\x00\x05\x00plan" * 20_000}[kind]
    before, used = resident(), time.thread_time()
    done: list[float] = []
    hostile = threading.Thread(target=flood, args=(bus.path, words, 2.0, done))
    hostile.start()
    assert bus.hears(1.0)
    bus.run(2.0)
    hostile.join()
    assert bus.longest < 0.3
    assert resident() - before < MEMORY
    assert time.thread_time() - used < 1.0, "bounded work"
    assert bus.hears(1.0)


@pytest.mark.parametrize("room", [10, 40], ids=["no descriptors", "too many of one user"])
def test_a_crowd_waits_outside(bus: Bus, room: int) -> None:
    """Far more than this process may have descriptors for; those of the crowd are in a process of its own."""
    open_now = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resident()
    crowd = os.fork()
    if not crowd:
        signal.alarm(20)
        callers = [socket.socket(socket.AF_UNIX) for _ in range(5000)]
        for caller in callers:
            caller.connect(bus.path)
        time.sleep(60)
        os._exit(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + room, hard))
    try:
        bus.run(0.5)
        assert bus.hears(1.0)
        bus.run(1.0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) <= open_now + room + 3  # some have higher numbers
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.kill(crowd, 9)
        os.waitpid(crowd, 0)
    assert resident() - before < MEMORY
    assert bus.longest < 0.3


def test_one_user_has_so_many_connections_and_no_more(bus: Bus, tmp_path: Path) -> None:
    with ExitStack() as stack:
        callers = [stack.enter_context(connected(bus.path)) for _ in range(200)]
        open_before = len(os.listdir("/proc/self/fd"))
        bus.run(0.5)
        taken = len(os.listdir("/proc/self/fd")) - open_before
        assert taken == door.MOST_CONNECTIONS - 1  # one has the follower
        assert bus.outlet.refused == 200 - taken
        assert callers[0].recv(99) == GREETING
        assert callers[-1].recv(99) == b""
    bus.run(0.3)
    late = Subscription(bus.loop, str(tmp_path), PLAN, lambda change: None)
    bus.run(0.3)
    assert late.complete


@pytest.mark.parametrize(
    "words",
    [
        os.urandom(1 << 16),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        GREETING + READY + b"\x02" + (100 << 20).to_bytes(8, "big") + bytes(1 << 20),
        GREETING + b"\x06" + (100 << 20).to_bytes(8, "big") + bytes(1 << 20),
        GREETING + READY + b"\x00\x41\x01" + bytes(64),
        GREETING + READY.replace(b"SUB", b"REQ"),
        GREETING.replace(b"NULL", b"PLAI") + READY,
        GREETING + WANTED,
        GREETING + READY + b"\xff\x05\x01plan" + bytes(9),
    ],
)
def test_what_is_no_subscriber_is_cut_off(bus: Bus, words: bytes) -> None:
    caller = connected(bus.path)
    with suppress(OSError):
        sender = threading.Thread(target=lambda: _say(caller, words))
        sender.start()
    bus.run(0.3)
    sender.join()
    rest = b"x"
    with suppress(ConnectionResetError):
        while rest:
            rest = caller.recv(9999)
            assert b"\x04plan" not in rest
    caller.close()
    assert bus.hears(1.0)


def _say(caller: socket.socket, words: bytes) -> None:
    with suppress(OSError):
        caller.sendall(words)


def test_what_comes_byte_by_byte_is_understood(bus: Bus) -> None:
    with connected(bus.path) as caller:
        for byte in GREETING + READY + WANTED:
            caller.sendall(bytes((byte,)))
            bus.run(0.001)
        bus.run(0.2)
        assert b"\x01\x04plan" in caller.recv(9999)


def test_half_of_a_message_is_waited_for_at_no_cost(bus: Bus) -> None:
    with connected(bus.path, GREETING + READY + b"\x00\x05\x01pl"):
        used = time.thread_time()
        bus.run(0.5)
        assert time.thread_time() - used < 0.2
        assert bus.hears(1.0)


def test_a_reader_that_reads_nothing_costs_a_bound_and_others_nothing(bus: Bus, tmp_path: Path) -> None:
    """It asks for everything all the time."""
    bus.much()
    bus.run(0.5)
    before = resident()
    with ExitStack() as stack:
        sleepers = [stack.enter_context(connected(bus.path, GREETING + READY + WANTED)) for _ in range(20)]
        for n in range(60):
            for sleeper in sleepers:
                sleeper.sendall(WANTED)
            bus.change()
            bus.run(0.05)
            assert n % 10 or bus.hears(1.0)
        grown = resident() - before
    size = len(encode(bus.plan.state))
    assert size > 1 << 20
    assert grown < door.MOST_QUEUED + 20 * 2 * size
    assert bus.hears(1.0)


def test_a_slow_reader_is_given_all_in_the_end(bus: Bus, tmp_path: Path) -> None:
    bus.much()
    with connected(bus.path, GREETING + READY + WANTED) as caller:
        bus.run(0.5)
        caller.settimeout(0.01)
        heard = 0
        for _ in range(2000):
            with suppress(TimeoutError):
                heard += len(caller.recv(30_000))
            bus.run(0.0005)
            if heard > 1 << 20:
                break
    assert heard > 1 << 20
