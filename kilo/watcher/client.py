"""Requests to the Kubernetes API: raw bytes in and out, errors translated, nothing without a bound.

Any thread may use an Api; each request takes a connection of its own from a pool. Credentials are
asked for at every request (kilo.watcher.session), so that what has been rotated is renewed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import urlencode

import urllib3
from urllib3.exceptions import HTTPError

from kilo import __version__
from kilo.errors import ProtocolError, TemporaryError
from kilo.watcher.impersonation import USER
from kilo.watcher.objects import decode_status
from kilo.watcher.reasons import (
    RequestFailure,
    certificate_failure,
    failure_of,
    reason_of,
    refusal_of,
    verification_of,
)
from kilo.watcher.session import Session, Sessions
from kilo.watcher.x509 import Certificate

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
PATCH_TIMEOUT = 10.0
"""s; with a check-in every 30 s, one that hangs is known to be lost before anybody counts as dead."""
GET_TIMEOUT = 300.0
"""s until a whole answer is there; a list in one piece can be long."""
READ_SIZE = 1 << 18
LINE_LIMIT = 16 << 20
"""Bytes of one line of a watch. No object is near that size."""
ANSWER_LIMIT = 1 << 30
REFUSAL_LIMIT = 1 << 16
"""Bytes that are read of an answer, and of one that says why there is none."""
OF_PROXIES = (407, 502, 503, 504)
"""Answers that are a forwarding proxy's own, unless Kubernetes says why."""
LOOK_EVERY = 60.0
"""s between two looks at a certificate that is refused."""
RIGHTS = "apply the ClusterRole and its binding of deploy/manifests, or give a --kubeconfig that may"
MERGE_PATCH = "application/merge-patch+json"


class ApiError(TemporaryError):
    """A request that failed. ``status`` as in HTTP, 0 without an answer; ``reason`` in Kubernetes' words,
    such as NotFound, if it was Kubernetes that refused; ``retry_after`` in s, as asked. ``event``: what it
    counts as in kilo_errors_total, "" for nothing of its own; ``mend``: what to do, "" if that is clear."""

    event = ""
    mend = ""

    def __init__(
        self, message: str, status: int = 0, reason: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after

    def advised(self, event: str, mend: str) -> Self:
        """The same error, which counts as ``event`` and says what to do."""
        self.event, self.mend = event, mend
        return self

    @property
    def account(self) -> str:
        """The message and what to do, for a log and a status."""
        return f"{self}: {self.mend}" if self.mend else str(self)


class Broken(ApiError):
    """The connection broke, or there was none."""


class Garbled(ApiError):
    """The server sent what nobody can read."""


class Stream:
    """The body of an answer that does not end by itself, as lines. One thread reads; any may ``cut``."""

    def __init__(self, response: urllib3.BaseHTTPResponse, what: str) -> None:
        self._response = response
        self._what = what

    def batches(self) -> Iterator[list[bytes]]:
        """The lines that came, as they come, several together where they came together.

        Ends when the server ends the answer. Raises Broken, and Garbled for a line without an end.
        """
        response = self._response
        rest: list[bytes] = []
        waiting = 0
        with _translated(self._what):
            # A chunk at a time costs less than read1, and a server makes one of each event.
            chunked = getattr(response, "chunked", False)
            reads = iter(lambda: response.read1(READ_SIZE), b"")
            parts = response.read_chunked(READ_SIZE) if chunked else reads
            for data in parts:
                if not rest and data.find(b"\n") == len(data) - 1:
                    yield [data]
                    continue
                *lines, tail = data.split(b"\n")
                if lines:
                    lines[0] = b"".join(rest) + lines[0]
                    rest.clear()
                    waiting = 0
                    yield lines
                if tail:
                    rest.append(tail)
                    waiting += len(tail)
                if waiting > LINE_LIMIT:
                    raise Garbled(f"cannot {self._what}: a line of it is longer than {LINE_LIMIT >> 20} MiB")

    def cut(self) -> None:
        """End the reading from another thread: the reader sees the connection break."""
        with contextlib.suppress(OSError, RuntimeError, ValueError, AttributeError):
            self._response.shutdown()

    def close(self) -> None:
        """Release the connection, which is used again only if the answer was read to its end."""
        if not self._response.closed:
            self._response.close()
        self._response.release_conn()


class Api:
    """The API server that the flags ``--kubeconfig`` and ``--master`` name; neither: the cluster's own.

    ``on_failure``: told on any thread why credentials cannot be renewed, and "" once they can. Raises
    PermanentError if the configuration cannot be read.
    """

    def __init__(
        self, kubeconfig: str, master: str, on_failure: Callable[[str], None] = lambda reason: None
    ) -> None:
        self._sessions = Sessions(kubeconfig, master, on_failure)
        self._presented: Certificate | None = None
        self._looked = float("-inf")

    def close(self) -> None:
        """Close the connections that are not in use, and kill a plugin that runs. No request after this."""
        self._sessions.close()

    @property
    def server(self) -> str:
        """The URL of the server."""
        return self._sessions.access.server

    @property
    def verified(self) -> bool:
        """Whether the server's certificate is verified."""
        return self._sessions.access.tls.verify or not self.server.startswith("https:")

    def get(self, path: str, query: Mapping[str, str], what: str) -> bytes:
        """The body of the answer. ``what`` names the request in errors. Raises ApiError."""
        with _translated(what):
            response = self._request("GET", _target(path, query), what)
            return _body(response, what, GET_TIMEOUT, ANSWER_LIMIT)

    def stream(self, path: str, query: Mapping[str, str], what: str, silence: float) -> Stream:
        """An answer to be read as it comes. Raises ApiError.

        Its head must come as soon as any answer; of its body, ``silence`` seconds without a byte break it.
        """
        with _translated(what):
            response = self._request("GET", _target(path, query), what)
            sock = getattr(response.connection, "sock", None)
            if sock is not None:
                sock.settimeout(silence)
            return Stream(response, what)

    def patch(self, path: str, patch: Mapping[str, Any], what: str, within: float | None = None) -> bytes:
        """Send a merge patch; the body of the answer. ``within``: in s, in a hurry. Raises ApiError."""
        with _translated(what):
            response = self._request("PATCH", path, what, json.dumps(patch).encode(), within)
            return _body(response, what, within or PATCH_TIMEOUT, ANSWER_LIMIT)

    def clock(self, path: str, query: Mapping[str, str], what: str) -> float | None:
        """When the server answered such a request, by its own clock (Unix s); None if it does not say. Raises
        ApiError."""
        with _translated(what):
            response = self._request("GET", _target(path, query), what)
            _body(response, what, READ_TIMEOUT, ANSWER_LIMIT)
        return _date(response)

    def _request(
        self, method: str, target: str, what: str, body: bytes | None = None, within: float | None = None
    ) -> urllib3.BaseHTTPResponse:
        """The head of an answer that is 200; its body is still to be read. ``within``: in s, in a hurry."""
        timeout = READ_TIMEOUT if body is None else PATCH_TIMEOUT
        began = time.monotonic()
        try:
            session = self._sessions.current(within)
        except TemporaryError as e:
            mend = f"see what is wrong with {self._sessions.access.giver}"
            raise ApiError(f"cannot {what}: credentials: {e}").advised("", mend) from e
        if within is not None:
            timeout = max(0.1, within - (time.monotonic() - began))
        headers = urllib3.HTTPHeaderDict({"Accept": "application/json", "User-Agent": f"kg/{__version__}"})
        for name, value in session.impersonation:
            headers.add(name, value)
        if session.authorization:
            headers["Authorization"] = session.authorization
        if body is not None:
            headers["Content-Type"] = MERGE_PATCH
        try:
            response: urllib3.BaseHTTPResponse = session.pool.request(
                method,
                session.server + target,
                body=body,
                headers=headers,
                preload_content=False,
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=min(timeout, CONNECT_TIMEOUT), read=timeout),
            )
        except (HTTPError, OSError) as e:
            failure = self._failure(e, session)
            error = Broken(f"cannot {what}: {failure.reason}")
            raise error.advised(failure.event, failure.mend) from e
        if response.status == 200:
            return response
        if response.status == 401:
            self._sessions.refused(session)
        raise _refusal(response, what, session)

    def _failure(self, error: BaseException, session: Session) -> RequestFailure:
        """Why there was no answer. Where the server's certificate is refused, look at it, once a minute."""
        refused = verification_of(error)
        if refused is None:
            return failure_of(error, session.way)
        if time.monotonic() - self._looked >= LOOK_EVERY:
            self._looked = time.monotonic()
            self._presented = self._sessions.presented()
        return certificate_failure(refused, session.way, self._presented, time.time())


def _target(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _body(response: urllib3.BaseHTTPResponse, what: str, timeout: float, limit: int) -> bytes:
    """The whole of it. Raises ApiError if it is longer than ``limit`` bytes or takes over ``timeout`` s."""
    parts: list[bytes] = []
    size, end = 0, time.monotonic() + timeout
    while part := response.read1(READ_SIZE):
        parts.append(part)
        size += len(part)
        if size > limit or time.monotonic() > end:
            response.close()
            why = "is too long" if size > limit else "did not end in time"
            raise ApiError(f"cannot {what}: the answer {why}")
    response.release_conn()
    return b"".join(parts)


def _refusal(response: urllib3.BaseHTTPResponse, what: str, session: Session) -> ApiError:
    """What an answer that is not 200 means."""
    answer, reason, body = f"{response.status} {response.reason}", "", b""
    message = f"cannot {what}: {answer}"
    with contextlib.suppress(HTTPError, OSError, ApiError, ProtocolError):
        body = _body(response, what, READ_TIMEOUT, REFUSAL_LIMIT)
        status = decode_status(body)
        reason = status.reason
        if status.message:
            message += f": {status.message}"
    event, mend = "", ""
    if response.status == HTTPStatus.UNAUTHORIZED:
        now = _date(response) or time.time()
        event, mend = "unauthorized", session.identity.mend(now)
        message += f": {session.identity.refused(now)}"
    elif response.status == HTTPStatus.FORBIDDEN:
        event, mend = "forbidden", _rights(session)
    elif session.forwarded and not reason and response.status in OF_PROXIES:
        failure = refusal_of(session.forwarded, answer)
        message, event, mend = f"cannot {what}: {failure.reason}", failure.event, failure.mend
    elif response.status == HTTPStatus.BAD_REQUEST and b"HTTP request to an HTTPS server" in body:
        message, event = f"cannot {what}: {session.server} was reached, and speaks TLS", "tls"
        mend = "write https:// in the server's URL"
    wait = response.headers.get("Retry-After", "")
    error = ApiError(message, response.status, reason, float(wait) if wait.isdecimal() else None)
    return error.advised(event, mend)


def _rights(session: Session) -> str:
    """What to do about a 403."""
    acts = dict(session.impersonation).get(USER)
    return f"see that the user may act as {acts!r}, and that {acts!r} has the rights" if acts else RIGHTS


def _date(response: urllib3.BaseHTTPResponse) -> float | None:
    """When the server answered, by its own clock (Unix s)."""
    try:
        return parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except ValueError:
        return None


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Errors of the libraries below become ApiErrors."""
    try:
        yield
    except (HTTPError, OSError) as e:
        raise Broken(f"cannot {what}: {reason_of(e)}") from e
