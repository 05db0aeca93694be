"""One resource of the API, listed and then watched for ever, on a thread of its own.

What is read is handed to ``emit`` as the values defined here, in order, on the reader's thread (that a
watch stands with nothing to read, on a timer's). A list is handed over whole, so that whoever keeps its
objects can tell which are gone; a change, as it comes. After a broken connection the watch goes on from
the last version seen, and only where the server does not know that version any more (410) is everything
listed again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import tenacity

from kilo.errors import ProtocolError
from kilo.watcher.client import Api, ApiError, Broken, Garbled, Stream
from kilo.watcher.objects import (
    NODE,
    PEER,
    DecodedList,
    MalformedObject,
    NodeObject,
    PeerObject,
    decode_event,
    decode_node,
    decode_node_event,
    decode_nodes,
    decode_peer,
    decode_peer_event,
    decode_peers,
    decode_status,
    decode_version,
)

T = TypeVar("T", bound=NodeObject | PeerObject)
PAGE = 500
WATCH_SECONDS = (300, 600)
MARGIN = 30.0
"""s after the end of a watch that the server was asked for, until a silent one counts as broken."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 15.0
LONGEST_PAUSE_MISSING = 8.0
LONGEST_RETRY_AFTER = 60.0
HEALTHY = 1.0
"""s; a watch that ended sooner, and brought nothing, counts as a failure, or it would be a busy loop."""
BELIEVED_AFTER = 5.0
"""s that one must stand after such a failure, if it brings nothing, until it counts as a sign of life."""
PATIENCE = 3
CONFUSED = (400, 404, 504)
"""Where so many watches in a row fail with such an answer, or with one that makes no sense, the version
we know may be the reason (as after the server's data was restored from a backup, or where what follows
cannot be read), and everything is listed again."""
NO_DEFINITION = ((404, "NotFound"), (403, "Forbidden"))
"""Answers of Kubernetes by which a definition is missing, or must be taken to be."""
GONE_AFTER = 10.0
"""s; for so long must a resource that was there be missing until its objects count as deleted."""


@dataclass(frozen=True)
class Resource(Generic[T]):
    """A kind of object, where it is and how it is read.

    ``definition``: the path of what defines it, "" if it is built in and cannot be missing.
    """

    kind: str
    plural: str
    path: str
    decode: Callable[[msgspec.Raw], T]
    decode_list: Callable[[bytes], DecodedList[Any]]
    decode_event: Callable[[bytes], Any]
    definition: str = ""


NODES: Resource[NodeObject] = Resource(
    NODE, "nodes", "/api/v1/nodes", decode_node, decode_nodes, decode_node_event
)
PEERS: Resource[PeerObject] = Resource(
    PEER,
    "peers.kilo.squat.ai",
    "/apis/kilo.squat.ai/v1alpha1/peers",
    decode_peer,
    decode_peers,
    decode_peer_event,
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/peers.kilo.squat.ai",
)


@dataclass(frozen=True)
class Listing:
    """A list is being read."""


@dataclass(frozen=True)
class Listed(Generic[T]):
    """All objects there are, and those that did not decode."""

    items: list[T]
    refused: list[MalformedObject]


@dataclass(frozen=True)
class Changed(Generic[T]):
    """What happened, in order. Empty: nothing did, and the API is there (a bookmark, a new watch)."""

    upserts_and_removals: list[T | MalformedObject | str]
    """An object is new or changed, a text is the name of one that was deleted."""


@dataclass(frozen=True)
class Failed:
    """A request failed and will be made again."""

    error: ApiError


@dataclass(frozen=True)
class Missing:
    """The resource is not defined in this cluster, so there are no objects of it."""


Emission = Listing | Listed[T] | Changed[T] | Failed | Missing


CHANGES = ("ADDED", "MODIFIED", "DELETED")


class _Expired(Exception):
    """The version that we know is too old for the server."""


class Reader(Generic[T]):
    """Reads one resource until ``stop``."""

    def __init__(self, api: Api, resource: Resource[T], emit: Callable[[Emission[T]], None]) -> None:
        self._api = api
        self._resource = resource
        self._emit = emit
        self._stop = threading.Event()
        self._stream: Stream | None = None
        self._belief = threading.Lock()
        """Held while a watch counts as standing, or ends: one after the other."""
        self._version = ""
        self._since = 0.0
        self._failures = 0
        self._relists = 0
        self._doubt = False
        """The last watch ended as soon as it had begun, so that the head of an answer says nothing."""
        self._had_it = False
        self._missing_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"{resource.plural} reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon; does not wait. Nothing is emitted once the thread has noticed."""
        self._stop.set()
        self.reconnect()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def reconnect(self) -> None:
        """Cut the watch under way, which goes on over a new connection. Safe from any thread."""
        if stream := self._stream:
            stream.cut()

    def _run(self) -> None:
        while not self._stop.is_set():
            attempts = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(ApiError),
                wait=pause,
                stop=tenacity.stop_when_event_set(self._stop),
                sleep=tenacity.sleep_using_event(self._stop),
                before_sleep=self._report,
                reraise=True,
            )
            try:
                attempts(self._watch if self._version else self._list)
            except ApiError:
                return  # told to stop
            except _Expired:
                self._version = ""
                self._relists += 1
                if self._relists > 1:  # again, and no watch has held in between
                    self._stop.wait(random.uniform(0.5, 1) * min(2.0**self._relists, LONGEST_PAUSE))  # noqa: S311
            except Exception as e:  # noqa: BLE001 - the thread's main loop
                message = f"cannot read {self._resource.plural}: {type(e).__name__}: {e}"
                self._emit(Failed(ApiError(message)))
                self._version = ""
                self._stop.wait(LONGEST_PAUSE)

    def _report(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ApiError) and not isinstance(error, _NotDefined):
            self._emit(Failed(error))

    def _list(self) -> None:
        """Read all pages and hand them over. Raises ApiError."""
        self._emit(Listing())
        what = f"list {self._resource.plural}"
        items: list[T] = []
        refused: list[MalformedObject] = []
        query = {"limit": str(PAGE)}
        while not self._stop.is_set():
            try:
                page = self._page(query, what)
            except ApiError as e:
                if e.status == 410 and query:
                    items, refused, query = [], [], {}  # a page went stale under way: all at once, then
                    continue
                if e.status == 404 and self._resource.definition:
                    raise self._missing(e) from e
                raise
            items += page.items
            refused += page.refused
            following = page.metadata.continue_
            if not following:
                self._version = page.metadata.resource_version
                self._had_it, self._missing_since, self._failures, self._doubt = True, None, 0, False
                self._emit(Listed(items, refused))
                return
            if following == query.get("continue"):
                raise ApiError(f"cannot {what}: the server gives the same page again and again")
            query = {"limit": str(PAGE), "continue": following}

    def _page(self, query: dict[str, str], what: str) -> DecodedList[Any]:
        try:
            return self._resource.decode_list(self._api.get(self._resource.path, query, what))
        except ProtocolError as e:
            raise ApiError(f"cannot {what}: the answer is not one: {e}") from e

    def _missing(self, error: ApiError) -> ApiError:
        """What a 404 means: the resource is not defined, or it is and is not served yet.

        Only Kubernetes itself can say that it is not: a proxy without a server behind it says 404, too.
        """
        try:
            self._api.get(self._resource.definition, {}, f"read the definition of {self._resource.plural}")
        except ApiError as e:
            if (e.status, e.reason) not in NO_DEFINITION:
                return e
        else:
            return error
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        if not self._had_it or now - self._missing_since >= GONE_AFTER:
            self._had_it = False
            self._emit(Missing())
            return _NotDefined(str(error), error.status)
        return error

    def _watch(self) -> None:
        """Follow changes from the version we know until the watch ends in good order.

        Raises ApiError if it broke without having brought anything, _Expired if it cannot go on.
        """
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311 - spreads load, guards nothing
        query = {
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        before, self._since = self._version, float("inf")
        try:
            self._follow(query, seconds + MARGIN)
            if not self._held(before):
                raise ApiError(f"cannot watch {self._resource.plural}: the server ends every watch at once")
            self._failures = self._relists = 0
        except ApiError as e:
            garbled = isinstance(e, Garbled)
            if self._held(before) and not garbled:
                self._failures = self._relists = 0
                if isinstance(e, Broken):  # whether the API is away, the next one shows
                    self._stop.wait(random.uniform(0, 2 * FIRST_PAUSE))  # noqa: S311
                    return
            self._doubt = self._since < float("inf")
            if e.status == 410 or (e.status == 404 and self._resource.definition):
                raise _Expired from e
            self._failures += 1
            patience = PATIENCE << min(self._relists, 4)  # more, where listing again did not help
            if self._failures >= patience and (garbled or e.status in CONFUSED):
                raise _Expired from e
            raise

    def _held(self, before: str) -> bool:
        """Whether the watch brought something, or stood for a while."""
        return self._version != before or time.monotonic() - self._since >= HEALTHY

    def _follow(self, query: dict[str, str], silence: float) -> None:
        what = f"watch {self._resource.plural}"
        stream = self._api.stream(self._resource.path, query, what, silence)
        self._since = time.monotonic()
        self._stream = stream
        belief = threading.Timer(BELIEVED_AFTER, self._believe, (stream,))
        belief.daemon = True
        try:
            if self._doubt:
                belief.start()
            else:
                self._emit(Changed([]))
            for lines in stream.batches():
                if self._stop.is_set():
                    return
                self._take(lines, what)
                self._doubt = False
        finally:
            belief.cancel()
            with self._belief:
                self._stream = None
            stream.close()

    def _believe(self, stream: Stream) -> None:
        """The watch stands: where nothing happens, that is the sign of life. On a thread of its own."""
        with self._belief:
            if self._doubt and self._stream is stream:
                self._doubt = False
                self._emit(Changed([]))

    def _take(self, lines: list[bytes], what: str) -> None:
        """Hand over what some lines say, also what comes before one that ends the watch."""
        items: list[T | MalformedObject | str] = []
        try:
            for line in lines:
                if line:
                    items += self._event(line, what)
        except ApiError:
            if items:
                self._emit(Changed(items))
            raise
        self._emit(Changed(items))

    def _event(self, line: bytes, what: str) -> list[T | MalformedObject | str]:
        """What one line of a watch says. Raises ApiError for one that ends it."""
        change = self._resource.decode_event(line)
        if change is not None and change.object.metadata.name and change.type in CHANGES:
            item: T = change.object
            self._version = item.metadata.resource_version or self._version
            return [item.metadata.name if change.type == "DELETED" else item]
        return self._odd_event(line, what)

    def _odd_event(self, line: bytes, what: str) -> list[T | MalformedObject | str]:
        """The same, for a line that is no sound object."""
        try:
            event = decode_event(line)
            if event.type == "BOOKMARK":
                self._version = decode_version(event.object) or self._version
                return []
            if event.type == "ERROR":
                status = decode_status(event.object)
                raise ApiError(f"cannot {what}: {status.code}: {status.message}", status.code)
        except ProtocolError as e:
            raise Garbled(f"cannot {what}: {e}") from e
        try:
            self._resource.decode(event.object)
        except MalformedObject as e:
            self._version = _version_of(event.object) or self._version
            return [e.name if event.type == "DELETED" else e]
        return []  # of a type that does not exist today


class _NotDefined(ApiError):
    """The resource is missing; this has been emitted."""


def _version_of(raw: msgspec.Raw) -> str:
    try:
        return decode_version(raw)
    except ProtocolError:
        return ""


_exponential = tenacity.wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)
_exponential_missing = tenacity.wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE_MISSING)


def pause(state: tenacity.RetryCallState) -> float:
    """How long to wait after a failed attempt, in s: as the server asks, else longer each time, jittered."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, ApiError) and error.retry_after is not None:
        return min(error.retry_after, LONGEST_RETRY_AFTER) + random.random()  # noqa: S311 - as above
    wait = _exponential_missing if isinstance(error, _NotDefined) else _exponential
    return FIRST_PAUSE / 4 + wait(state)
