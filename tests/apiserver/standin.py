"""A stand-in for the Kubernetes API: nodes, peers and the definition of peers, and faults on demand.

Serves what agents ask of a real one: list (in pages), get, watch (from a version, with bookmarks,
time limits, 410, initial events), create, update, the three kinds of patch, delete. No TLS, no
RBAC. Use it in a test as ``with Standin() as api``, or as a process:
``python -m tests.apiserver.standin --listen 127.0.0.1:8001 [--state FILE]``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from tests.apiserver.admin import Admin
from tests.apiserver.kubeconfig import write_kubeconfig
from tests.apiserver.server import Connection, Server
from tests.apiserver.store import CRD, CRDS, KINDS, PEERS, ApiStatus, Kind, Store, encode
from tests.apiserver.wire import CHUNKED, LAST_CHUNK, Request, answer, chunk, status_object

T = TypeVar("T")
SAVE_DELAY = 0.5
INITIAL_EVENTS_END = {"k8s.io/initial-events-end": "true"}


FAULTS_PATH = "/standin/faults"
FAULT_CALLS = frozenset(("fail", "heal", "drop", "silence", "delay", "truncate", "compact"))
FAULTS_AFTER = 0.05
"""Where a stand-in that is a process is told which of its methods to call, these, and seconds until then."""


@dataclass
class Failure:
    """Answers to come that are errors: ``times`` of them (None: for ever), for what ``match`` is part of."""

    status: int
    times: int | None
    match: str
    retry_after: int | None


@dataclass
class Faults:
    """What goes wrong at present."""

    failures: list[Failure] = field(default_factory=list)
    delay: float = 0.0
    truncate: int = 0
    silent: bool = False
    tokens: set[str] | None = None
    gone_as_status: bool = False


@dataclass
class Watch:
    """A watch under way: everything up to ``version`` has been sent."""

    kind: Kind
    version: int
    bookmarks: bool


class Standin:
    """The server. Methods may be called from any thread.

    ``requests``: the newest requests, whatever came of them, oldest first. ``clock_ahead``: seconds.
    """

    def __init__(
        self, address: tuple[str, int] = ("127.0.0.1", 0), crd: bool = True, bookmark_period: float = 60.0
    ) -> None:
        self.store = Store(crd)
        self.clock_ahead = 0.0
        self.requests: deque[Request] = deque(maxlen=20_000)
        self._faults = Faults()
        self._watches: dict[Connection, Watch] = {}
        self._period = bookmark_period
        self._state: Path | None = None
        self._save_due = False
        self._server = Server(address, self._handle)
        self._server.later(bookmark_period, self._bookmarks)

    @property
    def url(self) -> str:
        host, port = self._server.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def kubeconfig(self, path: Path, token: str = "") -> str:
        """Write a kubeconfig to ``path``; its path as text."""
        return write_kubeconfig(path, self.url, token=token)

    def admin(self) -> Admin:
        """A client of this server."""
        return Admin(self.url)

    def keep_state(self, path: Path) -> None:
        """Start from what ``path`` holds, if it is there, and keep it up to date."""
        self._state = path
        if path.exists():
            self.store.load(path.read_bytes())

    def __enter__(self) -> Standin:
        self._server.start()
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()
        self._save()

    # Faults, each until it is taken back.

    def fail(
        self, status: int, times: int | None = 1, match: str = "", retry_after: int | None = None
    ) -> None:
        """Answer the next ``times`` requests with ``status``; None: all. ``match``: part of
        ``"METHOD /path"``, with WATCH as the method of a watch."""
        failure = Failure(status, times, match, retry_after)
        self._server.call(lambda: self._faults.failures.append(failure))

    def heal(self) -> None:
        """No faults any more; a pause or a refusal stays."""
        self._server.call(lambda: setattr(self, "_faults", Faults()))
        self._server.call(self._pump)

    def drop(self, reset: bool = True) -> None:
        """Cut every connection."""
        self._server.call(lambda: self._server.drop(reset))

    def pause(self) -> None:
        """Accept, and answer nothing; watches are sent nothing."""
        self._server.call(lambda: setattr(self._server, "paused", True))

    def resume(self) -> None:
        self._server.call(self._server.resume)
        self._server.call(self._pump)

    def refuse(self) -> None:
        """The port is closed, and so is every connection."""
        self._server.call(self._server.refuse)

    def accept(self) -> None:
        """Open the port again."""
        self._server.call(self._server.listen)

    def silence(self) -> None:
        """Watches are sent nothing, not even bookmarks, and do not end; all else is answered."""
        self._server.call(lambda: setattr(self._faults, "silent", True))

    def delay(self, seconds: float) -> None:
        """Every answer comes so much later."""
        self._server.call(lambda: setattr(self._faults, "delay", seconds))

    def truncate(self, times: int) -> None:
        """The next answers that are no streams end in the middle of their bodies."""
        self._server.call(lambda: setattr(self._faults, "truncate", times))

    def admit(self, *tokens: str) -> None:
        """Answer 401 to who does not come with one of ``tokens``."""
        self._server.call(lambda: setattr(self._faults, "tokens", set(tokens)))

    def compact(self, as_status: bool = False) -> None:
        """Forget the history: a watch from before is told 410, by an event or by the status of the answer."""
        self._server.call(lambda: setattr(self._faults, "gone_as_status", as_status))
        self._server.call(self.store.compact)

    def change(self, function: Callable[[Store], T]) -> T:
        """Write to the store behind the API's back; watches are told as always."""

        def run() -> T:
            try:
                return function(self.store)
            finally:
                self._changed()

        return self._server.call(run)

    def watches(self) -> int:
        """How many watches are under way."""
        return self._server.call(lambda: len(self._watches))

    # From here on, all runs on the server's thread.

    def _handle(self, connection: Connection, request: Request) -> None:
        if request.path == FAULTS_PATH:
            connection.send(self._told(request))
            return
        self.requests.append(request)
        if self._faults.delay:
            connection.busy = True
            self._server.later(self._faults.delay, lambda: self._delayed(connection, request))
        else:
            self._answer(connection, request)

    def _told(self, request: Request) -> bytes:
        """Do what a request for faults says, once its answer is out: ``[["delay", 2.0], ["drop"]]``."""
        try:
            calls = msgspec.json.decode(request.body, type=list[tuple[Any, ...]])
        except msgspec.DecodeError as e:
            return answer(400, status_object(400, "BadRequest", f"no faults: {e}"), {})
        for name, *arguments in calls:
            if name not in FAULT_CALLS:
                return answer(400, status_object(400, "BadRequest", f"no such fault: {name}"), {})
            self._server.later(FAULTS_AFTER, partial(getattr(self, name), *arguments))
        return answer(200, b"{}", {})

    def _delayed(self, connection: Connection, request: Request) -> None:
        connection.busy = False
        self._answer(connection, request)
        self._server.serve(connection)

    def _answer(self, connection: Connection, request: Request) -> None:
        headers = {"Date": formatdate(time.time() + self.clock_ahead, usegmt=True)}
        try:
            self._obstruct(request, headers)
            kind, name = self._route(request)
            if request.watch and request.method == "GET":
                self._watch(connection, request, kind)
                return
            status, body = self._serve(request, kind, name)
        except ApiStatus as e:
            status, body = e.status, status_object(e.status, e.reason, str(e))
        data = answer(status, body, headers)
        if self._faults.truncate:
            self._faults.truncate -= 1
            connection.send(data[: len(data) - len(body) // 2 - 1], close=True)
        else:
            connection.send(data)
        if request.method != "GET" and status < 300:
            self._changed()

    def _obstruct(self, request: Request, headers: dict[str, str]) -> None:
        """Raise what is to go wrong with this request."""
        token = request.headers.get("authorization", "").partition(" ")[2]
        if self._faults.tokens is not None and token not in self._faults.tokens:
            raise ApiStatus(401, "Unauthorized", "Unauthorized")
        for failure in self._faults.failures:
            if failure.match in str(request):
                if failure.times is not None:
                    failure.times -= 1
                    if not failure.times:
                        self._faults.failures.remove(failure)
                if failure.retry_after is not None:
                    headers["Retry-After"] = str(failure.retry_after)
                raise ApiStatus(failure.status, "Injected", f"a fault was injected into {request}")

    def _route(self, request: Request) -> tuple[Kind, str]:
        for kind in KINDS:
            if request.path == kind.path or request.path.startswith(kind.path + "/"):
                if not self.store.served(kind):
                    break
                name, _, part = request.path[len(kind.path) + 1 :].partition("/")
                if part in ("", "status"):
                    return kind, name
        raise ApiStatus(404, "NotFound", "the server could not find the requested resource")

    def _serve(self, request: Request, kind: Kind, name: str) -> tuple[int, bytes]:
        """Status and body of the answer. Raises ApiStatus."""
        store = self.store
        match request.method, bool(name):
            case "GET", False:
                return 200, self._list(request, kind)
            case "GET", True:
                return 200, store.get(kind, name).raw
            case "POST", False:
                if kind is CRDS and "yaml" in request.headers.get("content-type", ""):
                    return 201, store.create(kind, {"metadata": {"name": CRD}}).raw  # the only one there is
                return 201, store.create(kind, _decode(request)).raw
            case "PUT", True:
                return 200, store.update(kind, name, _decode(request)).raw
            case "PATCH", True:
                content_type = request.headers.get("content-type", "")
                return 200, store.patch(kind, name, content_type, _json(request)).raw
            case "DELETE", True:
                return 200, store.delete(kind, name).raw
        raise ApiStatus(405, "MethodNotAllowed", f"{request.method} is not supported")

    def _list(self, request: Request, kind: Kind) -> bytes:
        limit = int(request.query.get("limit") or 0)
        page = self.store.list(kind, limit, request.query.get("continue", ""))
        metadata: dict[str, Any] = {"resourceVersion": str(page.version)}
        if page.token:
            metadata |= {"continue": page.token, "remainingItemCount": page.remaining}
        head = {"kind": kind.name + "List", "apiVersion": kind.api_version, "metadata": metadata}
        return encode(head)[:-1] + b',"items":[' + b",".join(page.items) + b"]}"

    def _watch(self, connection: Connection, request: Request, kind: Kind) -> None:
        query = request.query
        version = int(query.get("resourceVersion") or 0)
        if version > self.store.version:
            raise ApiStatus(504, "Timeout", f"Too large resource version: {version}")
        watch = Watch(kind, version, query.get("allowWatchBookmarks") in ("true", "1"))
        if version == 0 or query.get("sendInitialEvents") in ("true", "1"):
            page = self.store.list(kind)
            head = b"".join(chunk("ADDED", raw) for raw in page.items)
            watch.version = page.version
            if query.get("sendInitialEvents"):
                head += self._bookmark(watch, INITIAL_EVENTS_END)
        else:
            try:
                self.store.since(kind, version)
                head = b""
            except ApiStatus as e:
                if self._faults.gone_as_status:
                    raise
                gone = chunk("ERROR", status_object(e.status, e.reason, str(e)))
                connection.send(CHUNKED + gone + LAST_CHUNK)
                return
        connection.busy = True
        connection.send(CHUNKED + head)
        self._watches[connection] = watch
        self._pump_one(connection, watch)
        if query.get("timeoutSeconds"):
            self._server.later(float(query["timeoutSeconds"]), lambda: self._end(connection, watch))

    def _end(self, connection: Connection, watch: Watch) -> None:
        """The watch has lasted as long as its client asked for."""
        if self._watches.get(connection) is watch and not self._server.paused and not self._faults.silent:
            del self._watches[connection]
            connection.busy = False
            connection.send(LAST_CHUNK)
            self._server.serve(connection)

    def _changed(self) -> None:
        """Something was written."""
        self._pump()
        if self._state is not None and not self._save_due:
            self._save_due = True
            self._server.later(SAVE_DELAY, self._save)

    def _pump(self) -> None:
        for connection, watch in list(self._watches.items()):
            if connection.closed:
                del self._watches[connection]
            else:
                self._pump_one(connection, watch)

    def _pump_one(self, connection: Connection, watch: Watch) -> None:
        """Send what a watch has not been sent yet."""
        if self._server.paused or self._faults.silent or watch.version == self.store.version:
            return
        if not self.store.served(watch.kind) and watch.kind is PEERS:
            connection.send(LAST_CHUNK, close=True)
            return
        try:
            chunks = self.store.since(watch.kind, watch.version)
        except ApiStatus as e:
            connection.send(
                chunk("ERROR", status_object(e.status, e.reason, str(e))) + LAST_CHUNK, close=True
            )
            return
        watch.version = self.store.version
        if chunks:
            connection.send(b"".join(chunks))

    def _bookmarks(self) -> None:
        self._server.later(self._period, self._bookmarks)
        if self._server.paused or self._faults.silent:
            return
        self._pump()
        for connection, watch in list(self._watches.items()):
            if watch.bookmarks:
                connection.send(self._bookmark(watch))

    @staticmethod
    def _bookmark(watch: Watch, annotations: dict[str, str] | None = None) -> bytes:
        metadata: dict[str, Any] = {"resourceVersion": str(watch.version)}
        if annotations:
            metadata["annotations"] = annotations
        kind = watch.kind
        return chunk(
            "BOOKMARK", encode({"kind": kind.name, "apiVersion": kind.api_version, "metadata": metadata})
        )

    def _save(self) -> None:
        self._save_due = False
        if self._state is not None:
            new = self._state.with_name(self._state.name + ".new")
            new.write_bytes(self.store.dump())
            new.replace(self._state)


def _json(request: Request) -> Any:
    try:
        return msgspec.json.decode(request.body)
    except msgspec.DecodeError as e:
        raise ApiStatus(400, "BadRequest", f"the body is not JSON: {e}") from e


def _decode(request: Request) -> dict[str, Any]:
    value = _json(request)
    if not isinstance(value, dict):
        raise ApiStatus(400, "BadRequest", "the body is not an object")
    return value


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="A stand-in for the Kubernetes API.")
    parser.add_argument("--listen", default="127.0.0.1:8001", metavar="ADDR:PORT")
    parser.add_argument("--state", type=Path, help="keep the objects in this file over restarts")
    parser.add_argument("--kubeconfig", type=Path, help="write a kubeconfig here")
    parser.add_argument("--no-crd", action="store_true", help="start without the definition of peers")
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")
    standin = Standin((host.strip("[]"), int(port)), crd=not options.no_crd)
    if options.state:
        standin.keep_state(options.state)
    if options.kubeconfig:
        standin.kubeconfig(options.kubeconfig)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with standin, contextlib.suppress(KeyboardInterrupt):
        os.write(1, f"listening on {standin.url}\n".encode())
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
