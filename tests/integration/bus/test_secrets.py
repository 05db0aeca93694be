"""Who hears preshared keys: the worker that needs them, and root. Each caller is a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kilo.bus import CLUSTER, PLAN, Change, Loop, Subscription, Topic
from kilo.bus.door import MOST_CONNECTIONS
from kilo.bus.publisher import Outlet
from kilo.bus.zmtp import GREETING
from kilo.model.keys import PresharedKey
from kilo.model.node import Peer
from kilo.model.plan import PlanItem, PlannedPeer
from kilo.model.workers import IDS
from kilo.sandbox.profiles import HEARS
from tests.feeding import PATIENCE

KEY = "CPHsDzA3Jg5Q/bO8jfktK4L4dJi9ikStdnl6+IfXTmY="
SECRET = "WB9vvLmLPLQIeYeMAoFBIeLWnE3GJlqLLRvMzaVOE1U="
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
PEER = Peer("p", KEY, preshared_key=PresharedKey(SECRET), allowed_ips=("10.5.0.1/32",))
PLANNED = PlannedPeer(KEY, ("10.5.0.1/32",), preshared_key=PresharedKey(SECRET))


def groups_of(worker: str) -> set[int]:
    """Of one that the parent gave a user and groups of its own."""
    return {IDS[name] for name in (worker, *HEARS[worker])}


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Where every user may go."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def heard(path: Path, topic: bytes, uid: int, groups: set[int], loop: Loop) -> bytes:
    """What a process of this user and these groups is told, until 0.4 s after ``KEY`` has come."""
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(10)
        with suppress(BaseException):
            os.setgroups(sorted(groups))
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as caller:
                caller.settimeout(5)
                caller.connect(str(path))
                caller.sendall(GREETING + READY + bytes((0, 1 + len(topic), 1)) + topic)
                told = b""
                while more := caller.recv(9999):
                    os.write(w, more)
                    told += more
                    if KEY.encode() in told:
                        caller.settimeout(0.4)
        os._exit(0)
    os.close(w)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        loop.run_for(0.02)
    with os.fdopen(r, "rb") as found:
        return found.read()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.mark.parametrize(
    ("uid", "groups", "told"),
    [
        (0, groups_of("netctl"), True),
        (0, {0}, True),  # root, and netctl in a container of its own
        (0, {*IDS.values()}, True),  # kg tail
        (0, groups_of("cni"), False),
        (IDS["health"], groups_of("health"), False),
        (IDS["health"], {11070}, False),
        (IDS["watcher"], groups_of("watcher"), False),
    ],
)
def test_of_the_plan_s_secrets_netctl_alone_is_told(
    loop: Loop, run_dir: Path, uid: int, groups: set[int], told: bool
) -> None:
    plan = Outlet(loop, str(run_dir), "mesh").publish(PLAN)
    plan.put(PLANNED.key, PLANNED)
    plan.flush()
    found = heard(opened(run_dir / "mesh"), b"plan", uid, groups, loop)
    assert KEY.encode() in found
    assert (SECRET.encode() in found) == told


@pytest.mark.parametrize(
    ("uid", "groups", "told"),
    [
        (IDS["mesh"], groups_of("mesh"), True),
        (IDS["mesh"], {11070}, True),
        (0, {0}, True),
        (IDS["health"], groups_of("health"), False),
    ],
)
def test_of_the_cluster_s_secrets_mesh_alone_is_told(
    loop: Loop, run_dir: Path, uid: int, groups: set[int], told: bool
) -> None:
    cluster = Outlet(loop, str(run_dir), "watcher").publish(CLUSTER)
    cluster.put("peer/p", PEER)
    cluster.flush()
    found = heard(opened(run_dir / "watcher"), b"cluster", uid, groups, loop)
    assert KEY.encode() in found
    assert (SECRET.encode() in found) == told


def opened(directory: Path) -> Path:
    """The socket, for everybody: who may connect is another matter."""
    (directory / "bus.sock").chmod(0o666)
    return directory / "bus.sock"


def test_changes_keep_their_secrets_too(loop: Loop, run_dir: Path) -> None:
    """As the first message does: snapshot, changes and what is asked for again go the same way."""
    plan = Outlet(loop, str(run_dir), "mesh").publish(PLAN)
    plan.flush()
    path = opened(run_dir / "mesh")

    def change() -> None:
        plan.put(PLANNED.key, PLANNED)
        plan.flush()

    loop.call_later(0.2, change)
    found = heard(path, b"plan", IDS["health"], groups_of("health"), loop)
    assert KEY.encode() in found
    assert SECRET.encode() not in found


def test_who_is_not_told_knows_that_there_is_one(
    loop: Loop, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no key: one that were to use it would fail, and not go without."""
    monkeypatch.setattr("kilo.bus.door.User.may_be", lambda user, worker: False)
    plan = Outlet(loop, str(run_dir), "mesh").publish(PLAN)
    plan.put(PLANNED.key, PLANNED)
    plan.flush()
    follower = follow(loop, run_dir, PLAN)
    found = follower.state[PLANNED.key]
    assert isinstance(found, PlannedPeer)
    assert found.preshared_key == PresharedKey("")


def follow(loop: Loop, run_dir: Path, topic: Topic[PlanItem]) -> Subscription[PlanItem]:
    changes: list[Change[PlanItem]] = []
    follower = Subscription(loop, str(run_dir), topic, changes.append)
    end = time.monotonic() + 3
    while not follower.complete and time.monotonic() < end:
        loop.run_for(0.02)
    assert changes
    return follower


def test_cni_cannot_take_the_connections_that_netctl_may_have(
    loop: Loop, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are user 0. The crowd is not cut off for its silence meanwhile."""
    monkeypatch.setattr("kilo.bus.door.HANDSHAKE", 60.0)
    outlet = Outlet(loop, str(run_dir), "mesh")
    plan = outlet.publish(PLAN)
    plan.put(PLANNED.key, PLANNED)
    plan.flush()
    path = opened(run_dir / "mesh")
    r, w = os.pipe()
    crowd = os.fork()
    if not crowd:
        with suppress(BaseException):
            os.close(w)
            os.setgroups(sorted(groups_of("cni")))
            kept = [socket.socket(socket.AF_UNIX) for _ in range(2 * MOST_CONNECTIONS)]
            for caller in kept:
                caller.connect(str(path))
            os.read(r, 1)
        os._exit(0)
    end = time.monotonic() + PATIENCE
    while outlet.refused < MOST_CONNECTIONS and time.monotonic() < end:
        loop.run_for(0.02)
    assert heard(path, b"plan", 0, groups_of("cni"), loop) == b"", "it has all that it may have"
    assert KEY.encode() in heard(path, b"plan", 0, groups_of("netctl"), loop)
    os.close(r)
    os.close(w)
    os.waitpid(crowd, 0)
