"""Readers against a stand-in that misbehaves on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import tenacity

from kilo.watcher import stream as module
from kilo.watcher.client import Api, ApiError
from kilo.watcher.objects import MalformedObject
from kilo.watcher.stream import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    NODES,
    PEERS,
    Changed,
    Failed,
    Listed,
    Missing,
    Reader,
    pause,
)
from tests.apiserver import Admin, Standin
from tests.apiserver import store as kinds
from tests.feeding import eventually

Start = Callable[..., "Following"]


class Following:
    """A reader, and what one who listens to it knows: names, and what happened."""

    def __init__(self, api: Api, resource: Any) -> None:
        self.events: list[Any] = []
        self.known: set[str] = set()
        self.refused: list[MalformedObject] = []
        self.annotations: dict[str, dict[str, str]] = {}
        self.changed = threading.Condition()
        self.reader: Reader[Any] = Reader(api, resource, self._emit)
        self.reader.start()

    def _emit(self, event: Any) -> None:
        self.events.append(event)
        match event:
            case Listed(items, refused):
                self.known = {self._take(item) for item in items}
                self.refused += refused
            case Changed(items):
                for item in items:
                    if isinstance(item, str):
                        self.known.discard(item)
                    elif isinstance(item, MalformedObject):
                        self.refused.append(item)
                    else:
                        self.known.add(self._take(item))
            case Missing():
                self.known = set()

    def _take(self, item: Any) -> str:
        name: str = item.metadata.name
        self.annotations[name] = item.metadata.annotations or {}
        return name

    def count(self, kind: type) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    def knows(self, *names: str) -> None:
        """Wait until exactly these are known."""
        eventually(lambda: self.known == set(names), what=f"{set(names)}; known: {self.known}")

    def watching(self) -> None:
        eventually(lambda: self.count(Changed) > 0)

    def failures(self) -> list[ApiError]:
        return [event.error for event in self.events if isinstance(event, Failed)]


@pytest.fixture
def start(standin: Standin, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(resource: Any = NODES) -> Following:
            api = stack.enter_context(closing(Api(standin.kubeconfig(tmp_path / "kubeconfig"), "")))
            following = Following(api, resource)
            stack.callback(following.reader.join, 5)
            stack.callback(following.reader.stop)
            return following

        yield start


@pytest.fixture
def admin(standin: Standin) -> Iterator[Admin]:
    with closing(standin.admin()) as admin:
        yield admin


def requests(standin: Standin, what: str) -> int:
    """How many requests were made, as ``GET /path`` or ``WATCH /path``."""
    return sum(str(request) == what for request in standin.requests)


def lists(standin: Standin) -> int:
    return requests(standin, "GET /api/v1/nodes")


def watches(standin: Standin) -> int:
    return requests(standin, "WATCH /api/v1/nodes")


def test_what_is_there_is_listed_and_what_happens_is_told(start: Start, admin: Admin) -> None:
    admin.create_node("a")
    following = start()
    following.knows("a")
    admin.create_node("b")
    following.knows("a", "b")
    admin.annotate("b", key="x")
    eventually(lambda: following.annotations["b"] == {"kilo.squat.ai/key": "x"})
    admin.delete_node("a")
    following.knows("b")


def test_a_long_list_comes_in_pages_and_is_handed_over_whole(
    start: Start, admin: Admin, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 10)
    names = [f"n{i:02}" for i in range(35)]
    for name in names:
        admin.create_node(name)
    following = start()
    following.knows(*names)
    assert following.count(Listed) == 1
    assert lists(standin) == 4


def test_a_page_that_went_stale_makes_the_list_be_read_at_once(
    start: Start, admin: Admin, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    for name in "abc":
        admin.create_node(name)
    read = standin.store.list

    def stale(kind: kinds.Kind, limit: int = 0, token: str = "") -> Any:
        if token:
            standin.store.compact()  # just before the second page is read
        return read(kind, limit, token)

    monkeypatch.setattr(standin.store, "list", stale)
    following = start()
    following.knows("a", "b", "c")
    assert [r.query.get("limit") for r in standin.requests if not r.watch and r.method == "GET"] == [
        "2",
        "2",
        None,
    ]


def test_a_dropped_connection_is_resumed_and_nothing_is_listed_again(
    start: Start, admin: Admin, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEALTHY", 0.0)
    admin.create_node("a")
    following = start()
    for number in range(3):
        eventually(lambda: standin.watches() == 1)
        standin.drop()
        standin.change(lambda s, n=number: s.create(kinds.NODES, {"metadata": {"name": f"b{n}"}}))  # type: ignore[misc]
        following.knows("a", *(f"b{i}" for i in range(number + 1)))
    assert lists(standin) == 1
    assert watches(standin) == 4
    assert not following.failures(), "connections break; that is no failure of the API"


def test_a_watch_that_the_server_ends_is_begun_again_where_it_was(
    start: Start, admin: Admin, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", (1, 1))
    monkeypatch.setattr(module, "HEALTHY", 0.1)
    following = start()
    following.watching()
    eventually(lambda: watches(standin) >= 3)
    admin.create_node("a")
    following.knows("a")
    assert lists(standin) == 1
    assert not following.failures(), "this is no failure"


def test_bookmarks_move_the_version_on(start: Start, admin: Admin, standin: Standin) -> None:
    following = start()
    following.watching()
    for number in range(5):
        admin.create_peer(f"p{number}", publicKey="x", allowedIPs=[])
    version = str(standin.store.version)
    eventually(lambda: following.reader._version == version, what="a bookmark")
    standin.compact()
    standin.drop()
    eventually(lambda: watches(standin) == 2)
    admin.create_node("a")
    following.knows("a")
    assert lists(standin) == 1, "thanks to the bookmark the version is not too old"


@pytest.mark.parametrize("as_status", [True, False])
def test_410_lists_again_and_forgets_nothing_meanwhile(
    start: Start, admin: Admin, standin: Standin, as_status: bool
) -> None:
    admin.create_node("stays")
    admin.create_node("goes")
    following = start()
    following.knows("stays", "goes")
    eventually(lambda: standin.watches() == 1)
    standin.pause()
    standin.drop()
    standin.change(lambda s: s.delete(kinds.NODES, "goes"))
    standin.change(lambda s: s.create(kinds.NODES, {"metadata": {"name": "comes"}}))
    standin.compact(as_status)
    standin.resume()
    following.knows("stays", "comes")
    assert following.count(Listed) == 2
    assert lists(standin) == 2


def test_a_watch_that_is_always_too_old_is_no_busy_loop(
    start: Start, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin.fail(410, times=None, match="WATCH")
    following = start()
    eventually(lambda: following.count(Listed) >= 2)
    threading.Event().wait(1.0)
    assert lists(standin) < 6


def test_a_refused_connection_is_tried_again_and_told(start: Start, admin: Admin, standin: Standin) -> None:
    admin.create_node("a")
    admin.close()
    standin.refuse()
    following = start()
    eventually(lambda: len(following.failures()) >= 2)
    assert str(following.failures()[0]) == "cannot list nodes: Connection refused"
    standin.accept()
    following.knows("a")


def test_a_server_that_accepts_and_says_nothing_is_left(
    start: Start, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kilo.watcher.client.READ_TIMEOUT", 0.3)
    standin.pause()
    following = start()
    eventually(following.failures)
    assert str(following.failures()[0]) == "cannot list nodes: timed out"
    standin.resume()
    following.watching()


def test_a_silent_watch_breaks_after_the_time_it_was_asked_for(
    start: Start, admin: Admin, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", (1, 1))
    monkeypatch.setattr(module, "MARGIN", 0.2)
    following = start()
    following.watching()
    standin.silence()
    admin.create_node("a")
    eventually(lambda: watches(standin) >= 2)
    standin.heal()
    following.knows("a")


def test_a_watch_can_be_made_to_connect_again(start: Start, admin: Admin, standin: Standin) -> None:
    following = start()
    following.watching()
    standin.silence()
    admin.create_node("a")
    following.reader.reconnect()
    eventually(lambda: watches(standin) == 2)
    standin.heal()
    following.knows("a")
    assert lists(standin) == 1


def test_what_comes_before_an_error_in_the_same_breath_counts(
    start: Start, admin: Admin, standin: Standin
) -> None:
    following = start()
    eventually(lambda: standin.watches() == 1)
    line = b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"1000000"}}}'
    error = b'{"type":"ERROR","object":{"code":500,"message":"x"}}'
    with pytest.raises(ApiError, match="500: x"):
        following.reader._take([line, error], "watch nodes")
    following.knows("a")


def test_a_server_that_hangs_while_the_watch_is_begun_is_a_failure(
    start: Start, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEALTHY", 0.0)
    following = start()
    following.watching()
    monkeypatch.setattr("kilo.watcher.client.READ_TIMEOUT", 0.3)
    standin.pause()
    following.reader.reconnect()
    eventually(following.failures)
    assert str(following.failures()[0]) == "cannot watch nodes: timed out"
    standin.resume()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_server_is_tried_again(start: Start, admin: Admin, standin: Standin, status: int) -> None:
    admin.create_node("a")
    standin.fail(status, times=2)
    standin.fail(status, times=2, match="WATCH")
    following = start()
    following.knows("a")
    following.watching()
    assert [e.status for e in following.failures()] == [status] * 4
    assert lists(standin) == 3, "a watch that fails is no reason to list again"


def test_a_truncated_list_is_read_again(start: Start, admin: Admin, standin: Standin) -> None:
    admin.create_node("a")
    standin.truncate(1)
    following = start()
    following.knows("a")
    assert len(following.failures()) == 1


def test_a_server_whose_versions_have_gone_back_is_listed_anew(
    start: Start, admin: Admin, standin: Standin
) -> None:
    for name in "abc":
        admin.create_node(name)
    following = start()
    following.knows("a", "b", "c")
    older = kinds.Store()
    older.create(kinds.NODES, {"metadata": {"name": "restored"}})
    standin.change(lambda s: s.load(older.dump()))
    standin.drop()
    following.knows("restored")


def test_a_malformed_object_costs_only_itself(start: Start, admin: Admin, standin: Standin) -> None:
    garbage: dict[str, Any] = {"labels": ["not", "a", "map"]}
    admin.create_node("good")
    admin.create(kinds.NODES, {"metadata": {"name": "bad", **garbage}})
    following = start()
    following.knows("good")
    assert [(r.name, r.field) for r in following.refused] == [("bad", "metadata.labels")]
    admin.create(kinds.NODES, {"metadata": {"name": "worse", "annotations": 5}})
    admin.create_node("later")
    following.knows("good", "later")
    assert following.refused[-1].name == "worse"
    standin.drop()
    eventually(lambda: watches(standin) == 2)
    assert len(following.refused) == 2, "its version counts all the same: it is not sent again"
    admin.delete_node("worse")
    eventually(
        lambda: any("worse" in e.upserts_and_removals for e in following.events if isinstance(e, Changed))
    )


def test_without_their_definition_there_are_no_peers_until_there_is(
    standin: Standin, start: Start, admin: Admin
) -> None:
    admin.delete_crd()
    following = start(PEERS)
    eventually(lambda: following.count(Missing) >= 2)
    assert not following.failures(), "this is not a failure"
    admin.create_crd()
    admin.create_peer("p", publicKey="x", allowedIPs=[])
    following.knows("p")


def test_a_definition_that_is_deleted_takes_the_peers_with_it(
    start: Start, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GONE_AFTER", 0.5)
    admin.create_peer("p", publicKey="x", allowedIPs=[])
    following = start(PEERS)
    following.knows("p")
    admin.delete_crd()
    following.knows()
    eventually(lambda: following.count(Missing) >= 1)


def test_peers_that_are_not_served_for_a_moment_are_not_gone(
    start: Start, admin: Admin, standin: Standin
) -> None:
    admin.create_peer("p", publicKey="x", allowedIPs=[])
    following = start(PEERS)
    following.knows("p")
    eventually(lambda: standin.watches() == 1)
    standin.fail(404, times=3, match=kinds.PEERS.path)
    standin.fail(404, times=1, match="GET " + kinds.CRDS.path)
    standin.drop()
    eventually(lambda: following.count(Listed) == 2)
    assert following.count(Missing) == 0
    assert following.known == {"p"}


def test_where_nothing_of_kubernetes_answers_peers_are_not_gone(
    start: Start, admin: Admin, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load balancer without a server behind it says 404 to everything."""
    monkeypatch.setattr(module, "GONE_AFTER", 0.3)
    admin.create_peer("p", publicKey="x", allowedIPs=[])
    following = start(PEERS)
    following.knows("p")
    eventually(lambda: standin.watches() == 1)
    standin.fail(404, times=None)
    standin.drop()
    eventually(following.failures)
    threading.Event().wait(1.0)
    assert following.count(Missing) == 0
    assert following.known == {"p"}


def test_it_ends_when_told_to_also_while_it_waits(start: Start, standin: Standin) -> None:
    watching, waiting = start(), start(PEERS)
    watching.watching()
    standin.fail(429, times=None, retry_after=50, match=kinds.PEERS.path)
    standin.drop()
    eventually(waiting.failures)
    for following in (watching, waiting):
        following.reader.stop()
        following.reader.join(5)
        assert not following.reader._thread.is_alive()


def state(attempt: int, error: Exception) -> tenacity.RetryCallState:
    made = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    made.attempt_number = attempt
    made.set_exception((type(error), error, None))
    return made


def test_pauses_grow_are_jittered_and_capped() -> None:
    for attempt in (1, 2, 5, 10, 100, 10_000):
        pauses = [pause(state(attempt, ApiError("x"))) for _ in range(200)]
        assert min(pauses) >= FIRST_PAUSE / 4
        assert max(pauses) <= LONGEST_PAUSE + FIRST_PAUSE
        assert len(set(pauses)) > 100
    assert max(pause(state(1, ApiError("x"))) for _ in range(200)) < 0.5
    assert max(pause(state(100, ApiError("x"))) for _ in range(200)) > LONGEST_PAUSE / 2


def test_the_server_is_obeyed_when_it_says_how_long_to_wait() -> None:
    assert 5 <= pause(state(1, ApiError("x", 429, retry_after=5))) <= 6
    assert pause(state(1, ApiError("x", 503, retry_after=86_400))) <= 61
