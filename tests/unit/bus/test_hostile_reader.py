"""Subscribers that do what none would: the producer stays, stays small, and serves the others meanwhile."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from kilo.bus import PLAN, Loop, Publisher, Subscription, door, publisher
from kilo.bus.publisher import Outlet
from kilo.bus.wire import Frame, encode
from kilo.bus.zmtp import GREETING
from kilo.model.plan import PlanItem, Route
from tests.clock import Given

pytestmark = pytest.mark.long

READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
WANTED = b"\x00\x05\x01plan"
MEMORY = 16 << 20
"""Bytes that the process may grow by, whatever is sent to it."""
PATIENCE = 4.0
"""Seconds within which happens what is to happen."""
LONGEST = 0.3
"""Seconds that a turn of the loop may take."""


class Bus:
    """A producer and a lawful subscriber on one loop, and whether the loop ever stood still.

    ``busiest``: most seconds of the processor in a turn; ``longest``: most seconds in all.
    """

    def __init__(self, run_dir: Path, clock: Given) -> None:
        self.clock = clock
        self.loop = Loop()
        self.path = str(run_dir / "mesh/bus.sock")
        self.outlet = Outlet(self.loop, str(run_dir), "mesh")
        self.plan: Publisher[PlanItem] = self.outlet.publish(PLAN)
        self.plan.flush()
        self.follower = Subscription(self.loop, str(run_dir), PLAN, lambda change: None)
        self.busiest = self.longest = 0.0
        self._number = 0
        assert self.until(lambda: self.follower.complete)

    def run(self, seconds: float) -> None:
        """Serve, and note the longest turn."""
        end = time.monotonic() + seconds
        last, used = self.clock.seconds, time.thread_time()
        while time.monotonic() < end:
            self.loop.run_for(0.01)
            now, done = self.clock.seconds, time.thread_time()
            self.longest, last = max(self.longest, now - last), now
            self.busiest, used = max(self.busiest, done - used), done

    def until(self, happened: Callable[[], bool], patience: float = PATIENCE) -> bool:
        """Serve until it has happened. Whether it has."""
        end = time.monotonic() + patience
        while not happened() and time.monotonic() < end:
            self.run(0.02)
        return happened()

    def change(self) -> None:
        self._number += 1
        self.plan.put("n", Route("10.2.0.0/24", "wireguard", table=self._number))
        self.plan.flush()

    def much(self) -> None:
        """From now on, the whole of the topic is more than a megabyte."""
        networks = [f"10.{n >> 8 & 255}.{n & 255}.0/24" for n in range(20_000)]
        self.plan.replace({f"route/{n:030}": Route(n, "wireguard") for n in networks})
        self.plan.flush()

    def hears(self) -> bool:
        """Whether the subscriber is told of a change."""
        self.change()
        return self.until(lambda: self.follower.state == self.plan.state)


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """Without beacons: they would make a lost message good."""
    monkeypatch.setattr(publisher, "BEACON_PERIOD", 600.0)
    with Given() as clock:
        bus = Bus(tmp_path, clock)
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


def read(caller: socket.socket, words: bytearray) -> bool:
    """Add what it was sent to ``words``, without waiting. Whether it was cut off after that."""
    caller.setblocking(False)
    try:
        while more := caller.recv(9999):
            words += more
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


def is_told(bus: Bus, caller: socket.socket, what: bytes) -> bool:
    """Whether it is sent that."""
    words = bytearray()
    return bus.until(lambda: read(caller, words) or what in words) and what in words


def flood(path: str, words: bytes, over: threading.Event, done: list[float]) -> None:
    """Introduce oneself, and say ``words`` for as long as one may, again and again. ``done``: bytes sent."""
    while not over.is_set():
        with suppress(OSError), connected(path, GREETING + READY) as caller:
            caller.recv(len(GREETING))
            while not over.is_set():
                caller.sendall(words)
                done.append(len(words))


@pytest.mark.timing
@pytest.mark.parametrize("kind", ["one topic", "made up", "unwanted", "no message"])
def test_who_asks_without_end_is_cut_off(bus: Bus, kind: str) -> None:
    made_up = b"".join(b"\x00\x3f\x01" + os.urandom(62) for _ in range(2000))
    words = {
        "one topic": WANTED * 20_000,
        "made up": made_up,
        "unwanted": b"\x00\x05\x00plan" * 20_000,
        "no message": b"\x04\x00\x01\x00" * 20_000,  # an empty command, and a first part without a second
    }[kind]
    before, used, begun = resident(), time.thread_time(), time.monotonic()
    done: list[float] = []
    over = threading.Event()
    hostile = threading.Thread(target=flood, args=(bus.path, words, over, done))
    hostile.start()
    try:
        assert bus.hears()
        bus.run(2.0)
        assert (time.thread_time() - used) / (time.monotonic() - begun) < 0.5, "bounded work"
    finally:
        over.set()
        hostile.join()
    assert bus.busiest < LONGEST
    assert bus.longest < LONGEST
    assert resident() - before < MEMORY
    assert bus.hears()


@pytest.mark.timing
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
        assert bus.hears()
        bus.run(1.0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) <= open_now + room + 3  # some have higher numbers
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.kill(crowd, 9)
        os.waitpid(crowd, 0)
    assert resident() - before < MEMORY
    assert bus.busiest < LONGEST
    assert bus.longest < LONGEST


@pytest.mark.timing
def test_one_user_has_so_many_connections_and_no_more(bus: Bus, tmp_path: Path) -> None:
    with ExitStack() as stack:
        callers = [stack.enter_context(connected(bus.path)) for _ in range(200)]
        open_before = len(os.listdir("/proc/self/fd"))
        assert bus.until(lambda: bus.outlet.refused > 200 - door.MOST_CONNECTIONS)
        bus.run(0.1)
        taken = len(os.listdir("/proc/self/fd")) - open_before
        assert taken == door.MOST_CONNECTIONS - 1  # one has the follower
        assert bus.outlet.refused == 200 - taken
        assert callers[0].recv(99) == GREETING
        assert callers[-1].recv(99) == b""
    late = Subscription(bus.loop, str(tmp_path), PLAN, lambda change: None)
    assert bus.until(lambda: late.complete)


@pytest.mark.timing
def test_who_says_nothing_holds_a_place_for_so_long_and_no_longer(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that its user may have: another subscriber of this user is let in once their time is over."""
    monkeypatch.setattr(door, "HANDSHAKE", 1.0)
    begun = time.monotonic()
    with ExitStack() as stack:
        callers = [stack.enter_context(connected(bus.path)) for _ in range(door.MOST_CONNECTIONS - 1)]
        bus.run(0.2)
        heard: list[float] = []
        Subscription(bus.loop, str(tmp_path), PLAN, lambda change: heard.append(time.monotonic()))
        assert bus.until(lambda: bool(heard), 2.3), "before the usual time is over"
        assert heard[0] - begun >= door.HANDSHAKE, "all places were taken until then"
        assert callers[0].recv(99) == GREETING
        assert callers[0].recv(99) == b""
    assert bus.outlet.refused >= len(callers)
    assert bus.hears()


@pytest.mark.timing
def test_a_handshake_that_does_not_end_is_cut_off(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far it came."""
    monkeypatch.setattr(door, "HANDSHAKE", 0.5)
    begun = time.monotonic()
    with ExitStack() as stack:
        words = (b"", GREETING[:40], GREETING, GREETING + READY[:9])
        callers = [stack.enter_context(connected(bus.path, each)) for each in words]
        bus.run(0.3)
        for caller in callers:
            said = bytearray()
            cut = read(caller, said)
            assert said
            assert not cut or time.monotonic() - begun >= door.HANDSHAKE
        assert bus.until(lambda: all(read(caller, bytearray()) for caller in callers), 2.0)
    assert bus.outlet.refused == 4


@pytest.mark.timing
def test_a_handshake_that_is_over_is_never_cut_off(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that is slow, as long as it ends in time."""
    monkeypatch.setattr(door, "HANDSHAKE", 2.0)
    with connected(bus.path, GREETING + READY) as early, connected(bus.path) as slow:
        words = GREETING + READY
        for n in range(0, len(words), 4):
            slow.sendall(words[n : n + 4])
            bus.run(0.01)
        bus.run(2.2)
        for caller in (early, slow):
            caller.sendall(WANTED)
            assert is_told(bus, caller, b"\x04plan")
    assert bus.outlet.refused == 0


def test_nothing_is_due_while_no_handshake_is_under_way(tmp_path: Path) -> None:
    """A worker at rest is not woken for those who came long ago, or went."""
    loop = Loop()
    entry = door.Door(loop, tmp_path / "mesh/bus.sock", "mesh", lambda topic: True)
    path = str(tmp_path / "mesh/bus.sock")
    with connected(path, GREETING + READY), connected(path):
        loop.run_for(0.1)
        due = loop._timeout()
        assert due is not None
        assert 0 < due <= door.HANDSHAKE * 1000
    loop.run_for(0.1)
    with connected(path, GREETING + READY):
        loop.run_for(0.1)
        assert loop._timeout() is None
    assert entry.refused == 0
    loop.close()


@pytest.mark.timing
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
    sender = threading.Thread(target=lambda: _say(caller, words))
    sender.start()
    assert bus.until(lambda: not sender.is_alive())
    said = bytearray()
    assert bus.until(lambda: read(caller, said))
    assert b"\x04plan" not in said
    caller.close()
    assert bus.hears()


def _say(caller: socket.socket, words: bytes) -> None:
    with suppress(OSError):
        caller.sendall(words)


@pytest.mark.timing
def test_descriptors_are_not_taken(bus: Bus, refusable: bool) -> None:
    """The producer would have to close them, and its loop stand still meanwhile: a socket's that lingers
    (SO_LINGER), for as long as the sender likes. Before Linux 6.16 nothing refuses them."""
    with connected(bus.path, GREETING + READY) as caller:
        refused = False
        try:
            socket.send_fds(caller, [WANTED], [caller.fileno()])
        except PermissionError:
            refused = True
        assert refused == refusable
    assert bus.hears()


@pytest.mark.timing
def test_what_comes_byte_by_byte_is_understood(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "HANDSHAKE", 60.0)
    with connected(bus.path) as caller:
        for byte in GREETING + READY + WANTED:
            caller.sendall(bytes((byte,)))
            bus.run(0.001)
        assert is_told(bus, caller, b"\x01\x04plan")


@pytest.mark.timing
def test_half_of_a_message_is_waited_for_at_no_cost(bus: Bus) -> None:
    with connected(bus.path, GREETING + READY + b"\x00\x05\x01pl"):
        used = time.thread_time()
        bus.run(0.5)
        assert time.thread_time() - used < 0.2
        assert bus.hears()


@pytest.mark.timing
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
            assert n % 10 or bus.hears()
        grown = resident() - before
    size = len(encode(bus.plan.state))
    assert size > 1 << 20
    assert grown < door.MOST_QUEUED + 20 * 2 * size
    assert bus.hears()


@pytest.mark.timing
def test_the_whole_is_put_together_so_often_and_no_oftener(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a topic that never changed, which is sent at once to who comes as the agent starts."""
    made: list[Frame[PlanItem]] = []

    def counted(frame: Frame[PlanItem]) -> bytes:
        made.append(frame)
        return encode(frame)

    monkeypatch.setattr(publisher, "encode", counted)
    begin = time.monotonic()
    with ExitStack() as stack:
        callers = [stack.enter_context(connected(bus.path, GREETING + READY)) for _ in range(4)]
        for n in range(120):
            callers[n % 4].sendall(WANTED)
            bus.run(0.01)
        lasted = time.monotonic() - begin
        for caller in callers:
            assert b"\x01\x04plan" in caller.recv(9999)
    at_once = publisher.SNAPSHOTS_AT_ONCE * (lasted + 1)
    assert len(made) <= at_once + lasted / publisher.SNAPSHOT_GAP
    assert bus.hears()


@pytest.mark.timing
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
