"""Readers of a server whose answers are 200, and are not what was asked for."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from kilo.watcher import stream as module
from kilo.watcher.client import Api
from kilo.watcher.stream import NODES, Changed, Failed, Listed, Reader
from tests.feeding import eventually
from tests.unit.watcher.oddserver import HEAD, Answer, OddServer, chunk, whole
from tests.unit.watcher.test_stream import Following

Follow = Callable[[Answer], tuple[Following, list[str]]]
NODE_LIST = b'{"kind":"NodeList","metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":"a"}}]}'
END = b"0\r\n\r\n"


@pytest.fixture
def follow() -> Iterator[Follow]:
    """Of nodes, from a server that gives such answers; the reader, and the requests that came."""
    with ExitStack() as stack:

        def follow(answer: Answer) -> tuple[Following, list[str]]:
            server = stack.enter_context(closing(OddServer(answer)))
            api = stack.enter_context(closing(Api("", server.url)))
            following = Following(api, NODES)
            stack.callback(following.reader.join, 5)
            stack.callback(following.reader.stop)
            return following, server.requests

        yield follow


NO_LISTS = [
    b"{}",
    b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"down","code":503}',
    b'{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":null}',
    b'{"kind":"NodeList","apiVersion":"v1","metadata":{},"items":[]}',
    b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[]}',
    b"<html>Welcome</html>",
    b"",
]


@pytest.mark.parametrize("body", NO_LISTS)
def test_an_answer_that_is_no_list_is_a_failure_and_removes_nothing(follow: Follow, body: bytes) -> None:
    bodies = itertools.chain([NODE_LIST], itertools.repeat(body))

    def answer(request: str) -> Iterator[bytes]:
        if "watch=" in request:  # too old: list again
            yield HEAD + chunk(b'{"type":"ERROR","object":{"code":410,"message":"too old"}}\n') + END
        else:
            yield whole(next(bodies))

    following, requests = follow(answer)
    eventually(following.failures)
    assert str(following.failures()[0]).startswith("cannot list nodes: the answer is not one: ")
    threading.Event().wait(0.5)
    assert following.known == {"a"}
    assert len(requests) < 10, "no busy loop"


@pytest.mark.parametrize("body", [b"", b"{}", b"{}\n", b"<html>\n"])
def test_watches_that_end_at_once_with_nothing_are_a_failure_that_is_told_once(
    follow: Follow, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 100)

    def answer(request: str) -> Iterator[bytes]:
        if "watch=" in request:
            yield HEAD + (chunk(body) if body else b"") + END
        else:
            yield whole(NODE_LIST)

    following, requests = follow(answer)
    eventually(lambda: len(following.failures()) >= 3)
    threading.Event().wait(0.5)
    assert len(requests) < 12, "no busy loop"
    signs = [type(event) for event in following.events if type(event) in (Failed, Changed)]
    assert Changed not in signs[signs.index(Failed) :], "an answer that says nothing is no sign of life"
    assert following.count(Listed) == 1
    assert following.known == {"a"}


def silent_twice(then: bytes, over: threading.Event | None = None) -> Answer:
    """A list, two watches that end with nothing, and one that says ``then``, and stands until it is over."""
    watches, over = itertools.count(), over or threading.Event()

    def answer(request: str) -> Iterator[bytes]:
        if "watch=" not in request:
            yield whole(NODE_LIST)
        elif next(watches) < 2:
            yield HEAD + END
        else:
            yield then
            over.wait(5)

    return answer


def test_after_watches_that_say_nothing_one_that_stands_counts(
    follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BELIEVED_AFTER", 0.5)
    following, _ = follow(silent_twice(HEAD))
    eventually(lambda: len(following.failures()) == 2)
    eventually(lambda: isinstance(following.events[-1], Changed))
    assert len(following.failures()) == 2


def test_a_sign_of_life_is_handed_over_before_what_ends_the_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever thread finds that a watch stands: later it would hide that the API is away."""
    monkeypatch.setattr(module, "BELIEVED_AFTER", 0.1)
    monkeypatch.setattr(module, "HEALTHY", 30.0)
    events: list[str] = []
    believed = threading.Event()
    reader_name = f"{NODES.plural} reader"

    def emit(event: object) -> None:
        if threading.current_thread().name != reader_name:
            believed.set()
            time.sleep(0.8)  # as where it is preempted there
        events.append(type(event).__name__)

    server = OddServer(silent_twice(HEAD, believed))
    with closing(server), closing(Api("", server.url)) as api:
        reader = Reader(api, NODES, emit)
        reader.start()
        eventually(lambda: events.count("Failed") >= 3 and events.count("Changed") >= 2)
        reader.stop()
        reader.join(5)
    assert [e for e in events if e != "Listing"][:6] == [
        "Listed",
        "Changed",
        "Failed",
        "Failed",
        "Changed",
        "Failed",
    ]


def test_after_watches_that_say_nothing_one_that_speaks_counts(follow: Follow) -> None:
    event = b'{"type":"ADDED","object":{"metadata":{"name":"b","resourceVersion":"10"}}}\n'
    following, _ = follow(silent_twice(HEAD + chunk(event)))
    following.knows("a", "b")
    assert len(following.failures()) == 2


def test_a_line_that_cannot_be_read_is_passed_over_by_listing_again(
    follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEALTHY", 0.0)
    lists = itertools.count()

    def answer(request: str) -> Iterator[bytes]:
        if "resourceVersion=9" in request:
            yield HEAD + chunk(b'{"type":"MODIFIED","object":{"metadata":\n')
        elif "watch=" in request:
            yield HEAD
            threading.Event().wait(5)
        else:
            yield whole(NODE_LIST.replace(b'"9"', b'"10"') if next(lists) else NODE_LIST)

    following, requests = follow(answer)
    eventually(lambda: following.count(Listed) == 2)
    eventually(lambda: isinstance(following.events[-1], Changed))
    assert len(following.failures()) == module.PATIENCE - 1
    assert len(requests) == module.PATIENCE + 3
    assert following.known == {"a"}


def test_a_line_without_an_end_is_named_although_the_watch_stood_for_long(
    follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kilo.watcher.client.LINE_LIMIT", 1 << 20)
    monkeypatch.setattr(module, "HEALTHY", 0.0)

    def answer(request: str) -> Iterator[bytes]:
        if "watch=" not in request:
            yield whole(NODE_LIST)
            return
        yield HEAD
        while True:
            yield chunk(b"x" * (1 << 18))

    following, requests = follow(answer)
    eventually(lambda: len(following.failures()) >= 3)
    assert str(following.failures()[0]) == "cannot watch nodes: a line of it is longer than 1 MiB"
    assert len(requests) < 8
    assert following.known == {"a"}


def test_a_list_of_the_same_page_again_and_again_is_left(follow: Follow) -> None:
    page = NODE_LIST.replace(b'"9"', b'"9","continue":"token"')
    following, requests = follow(lambda request: iter([whole(page)]))
    eventually(following.failures)
    assert str(following.failures()[0]).endswith("the server gives the same page again and again")
    assert len(requests) < 6
    assert following.count(Listed) == 0
