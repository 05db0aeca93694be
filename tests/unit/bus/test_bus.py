"""Publishers and subscriptions over real sockets: whoever arrives, and whenever, has the same state."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from kilo.bus import CLUSTER, PLAN, Change, Loop, Subscription, publisher
from kilo.bus.publisher import Outlet
from kilo.bus.wire import VERSION, Frame, encode, endpoint
from kilo.errors import PermanentError, TemporaryError
from kilo.model.keys import PresharedKey
from kilo.model.plan import PlanItem, PlannedPeer, Route, SetEntry
from tests.feeding import PATIENCE

KEY = "CPHsDzA3Jg5Q/bO8jfktK4L4dJi9ikStdnl6+IfXTmY="
ROUTE = Route("10.2.0.0/24", "wireguard", via="10.4.0.1")
OTHER = Route("10.2.1.0/24", "wireguard", via="10.4.0.2")
ENTRY = SetEntry("masquerade_from", "10.2.0.0/24")


class Follower:
    """A subscription and all that it was told."""

    def __init__(self, loop: Loop, run_dir: Path) -> None:
        self.changes: list[Change[PlanItem]] = []
        self.bad: list[str] = []
        self.subscription = Subscription(
            loop, str(run_dir), PLAN, self.changes.append, lambda topic, reason: self.bad.append(reason)
        )

    @property
    def state(self) -> dict[str, PlanItem]:
        return self.subscription.state


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def wait(loop: Loop, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        loop.run_for(0.01)
    raise AssertionError("did not happen in time")


def test_late_subscriber_is_given_the_whole(loop: Loop, tmp_path: Path) -> None:
    plan = Outlet(loop, str(tmp_path), "mesh").publish(PLAN)
    plan.put("a", ROUTE)
    plan.flush()
    plan.put("b", ENTRY)
    plan.flush()
    follower = Follower(loop, tmp_path)
    wait(loop, lambda: follower.subscription.complete)
    assert follower.state == {"a": ROUTE, "b": ENTRY}
    assert len(follower.changes) == 1


def test_early_subscriber_hears_nothing_before_the_first_flush(loop: Loop, tmp_path: Path) -> None:
    follower = Follower(loop, tmp_path)
    plan = Outlet(loop, str(tmp_path), "mesh").publish(PLAN)
    loop.run_for(0.3)
    assert not follower.subscription.complete
    assert follower.changes == []
    plan.flush()
    wait(loop, lambda: follower.subscription.complete)
    assert follower.changes == [Change()]


def test_a_topic_may_be_asked_for_before_it_is_published(loop: Loop, tmp_path: Path) -> None:
    outlet = Outlet(loop, str(tmp_path), "mesh")
    follower = Follower(loop, tmp_path)
    loop.run_for(0.3)
    plan = outlet.publish(PLAN)
    plan.put("a", ROUTE)
    plan.flush()
    wait(loop, lambda: follower.state == {"a": ROUTE})


@pytest.mark.parametrize("what", ["socket", "directory"])
def test_a_socket_whose_file_was_removed_can_be_reached_again(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(publisher, "BEACON_PERIOD", 0.2)
    plan = Outlet(loop, str(tmp_path), "mesh").publish(PLAN)
    plan.put("a", ROUTE)
    plan.flush()
    before = Follower(loop, tmp_path)
    wait(loop, lambda: before.subscription.complete)
    if what == "socket":
        (tmp_path / "mesh/bus.sock").unlink()
    else:
        shutil.rmtree(tmp_path / "mesh")
    wait(loop, lambda: (tmp_path / "mesh/bus.sock").exists())
    after = Follower(loop, tmp_path)
    plan.put("b", OTHER)
    plan.flush()
    wait(loop, lambda: len(before.state) == len(after.state) == 2)
    with pytest.raises(TemporaryError, match="another mesh runs here"):
        Outlet(loop, str(tmp_path), "mesh")


def test_a_place_that_another_one_took_is_left_to_it(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "BEACON_PERIOD", 0.2)
    errors: list[Exception] = []
    other = Loop(on_error=errors.append)
    Outlet(other, str(tmp_path), "mesh")
    shutil.rmtree(tmp_path / "mesh")
    plan = Outlet(loop, str(tmp_path), "mesh").publish(PLAN)
    other.run_for(0.3)
    assert "another mesh runs here" in str(errors[0])
    plan.put("a", ROUTE)
    plan.flush()
    follower = Follower(loop, tmp_path)
    wait(loop, lambda: follower.state == {"a": ROUTE})
    other.close()
    assert (tmp_path / "mesh/bus.sock").exists()


def test_only_differences_pass(loop: Loop, tmp_path: Path) -> None:
    plan = Outlet(loop, str(tmp_path), "mesh").publish(PLAN)
    plan.replace({"a": ROUTE, "b": OTHER})
    plan.flush()
    follower = Follower(loop, tmp_path)
    wait(loop, lambda: follower.subscription.complete)
    assert not plan.flush()
    plan.replace({"a": ROUTE, "c": ENTRY})
    assert plan.flush()
    wait(loop, lambda: len(follower.changes) == 2)
    assert follower.changes[1] == Change({"c": ENTRY}, frozenset({"b"}))
    assert follower.state == {"a": ROUTE, "c": ENTRY}


def test_restarted_producer_with_the_same_state_changes_nothing(loop: Loop, tmp_path: Path) -> None:
    follower = Follower(loop, tmp_path)
    first = Loop()
    plan = Outlet(first, str(tmp_path), "mesh").publish(PLAN)
    plan.replace({"a": ROUTE, "b": OTHER})
    plan.flush()

    def told() -> bool:
        first.run_for(0.01)
        return follower.subscription.complete

    wait(loop, told)
    first.close()
    loop.run_for(0.2)
    assert follower.state == {"a": ROUTE, "b": OTHER}, "silence is not news"
    plan = Outlet(loop, str(tmp_path), "mesh").publish(PLAN)
    loop.run_for(0.3)
    assert len(follower.changes) == 1
    plan.replace({"a": ROUTE, "c": ENTRY})
    plan.flush()
    wait(loop, lambda: len(follower.changes) == 2)
    assert follower.changes[1] == Change({"c": ENTRY}, frozenset({"b"}))


def test_lost_message_is_made_good(loop: Loop, tmp_path: Path) -> None:
    outlet = Outlet(loop, str(tmp_path), "mesh")
    plan = outlet.publish(PLAN)
    plan.put("a", ROUTE)
    plan.flush()
    follower = Follower(loop, tmp_path)
    wait(loop, lambda: follower.subscription.complete)
    plan.put("b", OTHER)
    plan._seq += 1  # the frame that would have carried it is lost
    plan._upserts = {}
    plan.put("c", ENTRY)
    plan.flush()
    wait(loop, lambda: follower.state == {"a": ROUTE, "b": OTHER, "c": ENTRY})


def test_beacon_tells_of_a_lost_last_message(loop: Loop, tmp_path: Path) -> None:
    plan = Outlet(loop, str(tmp_path), "mesh").publish(PLAN)
    plan.flush()
    follower = Follower(loop, tmp_path)
    wait(loop, lambda: follower.subscription.complete)
    plan.put("b", OTHER)
    plan._seq += 1
    plan._upserts = {}
    loop.run_for(0.1)
    assert follower.state == {}
    plan.beacon()
    wait(loop, lambda: follower.state == {"b": OTHER})


def test_garbage_is_dropped_and_the_rest_goes_on(loop: Loop, tmp_path: Path) -> None:
    follower = Follower(loop, tmp_path)
    (tmp_path / "mesh").mkdir()
    context = zmq.Context()
    forger = context.socket(zmq.XPUB)
    forger.set(zmq.RCVTIMEO, 5000)
    forger.bind(endpoint(str(tmp_path), "mesh"))
    good = encode(Frame(VERSION, "snapshot", "e", 1, {"a": ROUTE}, []))
    assert forger.recv() == b"\x01plan"
    for parts in (
        [b"plan"],
        [b"plan", b"", b""],
        [b"plan", b"\xc1"],
        [b"plan", good[:-3]],
        [b"plan", encode(Frame(VERSION + 1, "snapshot", "e", 1, {}, []))],
        [b"plan", encode(Frame(VERSION, "snapshot", "e", 1, {"x": {"type": "rocket"}}, []))],
        [b"plan", encode(["not", "a", "frame"])],
        [b"plan", b"\x91" * 100_000],
        [b"plan", good],
    ):
        forger.send_multipart(parts)
    wait(loop, lambda: follower.subscription.complete)
    context.destroy(linger=0)
    assert follower.state == {"a": ROUTE}
    assert len(follower.bad) == 8


def test_a_preshared_key_arrives_and_does_not_print(loop: Loop, tmp_path: Path) -> None:
    plan = Outlet(loop, str(tmp_path), "mesh").publish(PLAN)
    peer = PlannedPeer(KEY, ("10.5.0.1/32",), preshared_key=PresharedKey(KEY))
    plan.put(peer.key, peer)
    plan.flush()
    follower = Follower(loop, tmp_path)
    wait(loop, lambda: follower.subscription.complete)
    received = follower.state[peer.key]
    assert received == peer
    assert isinstance(received, PlannedPeer)
    assert received.preshared_key is not None
    assert received.preshared_key.value == KEY
    assert "preshared_key=***" in repr(received)


def test_a_reader_that_never_reads_costs_the_producer_a_bounded_queue(loop: Loop, tmp_path: Path) -> None:
    plan = Outlet(loop, str(tmp_path), "mesh").publish(PLAN)
    plan.flush()
    context = zmq.Context()
    sleeper = context.socket(zmq.SUB)
    sleeper.set(zmq.RCVHWM, 1)
    sleeper.connect(endpoint(str(tmp_path), "mesh"))
    sleeper.subscribe(b"plan")
    follower = Follower(loop, tmp_path)
    wait(loop, lambda: follower.subscription.complete)
    for n in range(5000):
        plan.put("n", Route("10.2.0.0/24", "wireguard", table=n))
        plan.flush()
        if n % 100 == 0:
            loop.run_for(0.001)
    last = plan.state["n"]
    wait(loop, lambda: follower.state.get("n") == last, 10)
    context.destroy(linger=0)


def test_a_worker_cannot_publish_what_is_not_its_own(loop: Loop, tmp_path: Path) -> None:
    outlet = Outlet(loop, str(tmp_path), "mesh")
    with pytest.raises(ValueError, match="does not produce cluster"):
        outlet.publish(CLUSTER)


def test_a_second_worker_in_the_same_place_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    first, second = Loop(), Loop()
    Outlet(first, str(tmp_path), "mesh")
    Outlet(second, str(tmp_path), "netctl")
    with pytest.raises(TemporaryError, match=f"another mesh runs here: it holds {tmp_path}/mesh"):
        Outlet(second, str(tmp_path), "mesh")
    first.close()
    Outlet(second, str(tmp_path), "mesh")
    second.close()


def test_a_run_dir_that_cannot_be_written_is_named(loop: Loop) -> None:
    with pytest.raises(PermanentError, match="/proc/nowhere"):
        Outlet(loop, "/proc/nowhere", "mesh")
