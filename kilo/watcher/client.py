"""Requests to the Kubernetes API: raw bytes in and out, errors translated.

Any thread may use an Api; each request takes a connection of its own from the official client's
pool. Credentials are asked of the official client at every request, so that rotated token files
and expired exec plugins are renewed; where the server refuses them all the same (401), the whole
configuration is read again, which also renews client certificates and the files of a kubeconfig.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, InsecureRequestWarning

from kilo import __version__
from kilo.errors import PermanentError, ProtocolError, TemporaryError
from kilo.watcher.objects import decode_status
from kilo.watcher.official import official

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
PATCH_TIMEOUT = 10.0
"""s; with a check-in every 30 s, one that hangs is known to be lost before anybody counts as dead."""
RELOAD_GAP = 10.0
READ_SIZE = 1 << 18
MERGE_PATCH = "application/merge-patch+json"
KEEPALIVE = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 40_000),
]
"""A peer that vanished is noticed after 40 s, also where nothing is sent."""

_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What the official client raises, besides its own errors, on a kubeconfig that is not one."""


class ApiError(TemporaryError):
    """A request that failed. ``status`` as in HTTP, 0 without an answer; ``retry_after`` in s, as asked."""

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Stream:
    """The body of an answer that does not end by itself, as lines. One thread reads; any may ``cut``."""

    def __init__(self, response: urllib3.BaseHTTPResponse, what: str) -> None:
        self._response = response
        self._what = what

    def batches(self) -> Iterator[list[bytes]]:
        """The lines that came, as they come, several together where they came together.

        Ends when the server ends the answer. Raises ApiError when the connection breaks.
        """
        response = self._response
        rest: list[bytes] = []
        with _translated(self._what):
            # A chunk at a time costs less than read1, and a server makes one of each event.
            chunked = getattr(response, "chunked", False)
            parts = response.read_chunked() if chunked else iter(lambda: response.read1(READ_SIZE), b"")
            for data in parts:
                if not rest and data.find(b"\n") == len(data) - 1:
                    yield [data]
                    continue
                *lines, tail = data.split(b"\n")
                if lines:
                    lines[0] = b"".join(rest) + lines[0]
                    rest.clear()
                    yield lines
                if tail:
                    rest.append(tail)

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

    Raises PermanentError if the configuration cannot be read.
    """

    def __init__(self, kubeconfig: str, master: str) -> None:
        self._kubeconfig = kubeconfig
        self._master = master
        self._lock = threading.Lock()
        self._configuration, self._pool = self._load()
        self._reloaded = float("-inf")

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.clear()

    @property
    def server(self) -> str:
        """The URL of the server."""
        return str(self._master.rstrip("/") or self._configuration.host)

    @property
    def verified(self) -> bool:
        """Whether the server's certificate is verified."""
        return bool(self._configuration.verify_ssl) or not self.server.startswith("https:")

    def credentials(self) -> dict[str, str]:
        """The headers that say who we are, renewed where they have expired."""
        with self._lock:
            settings = self._configuration.auth_settings().values()
            return {setting["key"]: setting["value"] for setting in settings if setting["value"]}

    def get(self, path: str, query: Mapping[str, str], what: str) -> bytes:
        """The body of the answer. ``what`` names the request in errors. Raises ApiError."""
        with _translated(what):
            response = self._request("GET", _target(path, query), what)
            return response.data

    def stream(self, path: str, query: Mapping[str, str], what: str, silence: float) -> Stream:
        """An answer to be read as it comes. Raises ApiError.

        Its head must come as soon as any answer; of its body, ``silence`` seconds without a byte break it.
        """
        with _translated(what):
            response = self._request("GET", _target(path, query), what, stream=True)
            sock = getattr(response.connection, "sock", None)
            if sock is not None:
                sock.settimeout(silence)
            return Stream(response, what)

    def patch(self, path: str, patch: Mapping[str, Any], what: str, timeout: float = PATCH_TIMEOUT) -> bytes:
        """Send a merge patch; the body of the answer. Raises ApiError."""
        limits = urllib3.Timeout(connect=min(timeout, CONNECT_TIMEOUT), read=timeout)
        with _translated(what):
            response = self._request("PATCH", path, what, body=json.dumps(patch).encode(), timeout=limits)
            return response.data

    def _request(
        self,
        method: str,
        target: str,
        what: str,
        body: bytes | None = None,
        stream: bool = False,
        timeout: urllib3.Timeout | None = None,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": f"kg/{__version__}", **self.credentials()}
        if body is not None:
            headers["Content-Type"] = MERGE_PATCH
        with self._lock:
            pool, url = self._pool, self.server + target
        response: urllib3.BaseHTTPResponse = pool.request(
            method,
            url,
            body=body,
            headers=headers,
            preload_content=not stream,
            retries=False,
            redirect=False,
            timeout=timeout or urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
        )
        if response.status != 200:
            raise self._refused(response, what)
        return response

    def _refused(self, response: urllib3.BaseHTTPResponse, what: str) -> ApiError:
        body = response.data
        message = f"cannot {what}: {response.status} {response.reason}"
        with contextlib.suppress(ProtocolError):
            if said := decode_status(body).message:
                message += f": {said}"
        if response.status == 401:
            self._reload()
        retry_after = response.headers.get("Retry-After", "")
        return ApiError(message, response.status, float(retry_after) if retry_after.isdigit() else None)

    def _reload(self) -> None:
        """Read the configuration again, not too often. One that has become unreadable is kept as it was."""
        with self._lock:
            if time.monotonic() - self._reloaded < RELOAD_GAP:
                return
            self._reloaded = time.monotonic()
            with contextlib.suppress(PermanentError):
                old = self._pool
                self._configuration, self._pool = self._load()
                old.clear()

    def _load(self) -> tuple[Any, urllib3.PoolManager]:
        library = official()
        configuration = library.configuration()
        source = self._kubeconfig or "the in-cluster configuration"
        try:
            if self._kubeconfig:
                if not os.path.exists(self._kubeconfig):
                    raise PermanentError(f"--kubeconfig: {self._kubeconfig} does not exist")
                library.load_kubeconfig(
                    config_file=self._kubeconfig, client_configuration=configuration, persist_config=False
                )
            elif not self._master:
                library.load_in_cluster(client_configuration=configuration)
        except (library.error, library.syntax_error, *_DAMAGED) as e:
            hint = "" if self._kubeconfig else "; give --kubeconfig or --master outside a cluster"
            raise PermanentError(f"cannot read {source}: {e}{hint}") from e
        if self._master:
            configuration.host = (
                self._master
            )  # for the choice of a proxy; credentials, when renewed, reset it
        if not configuration.verify_ssl:
            urllib3.disable_warnings(InsecureRequestWarning)
        configuration.socket_options = KEEPALIVE
        configuration.connection_pool_maxsize = 4
        return configuration, library.rest_client(configuration).pool_manager


def _target(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Errors of the libraries below become ApiErrors."""
    try:
        yield
    except (HTTPError, OSError) as e:
        raise ApiError(f"cannot {what}: {_reason(e)}") from e
    except official().error as e:
        raise ApiError(f"cannot {what}: credentials: {e}") from e


def _reason(error: BaseException) -> str:
    """The shortest true account of an error of urllib3, whose own texts name objects and addresses."""
    deepest: BaseException | None = error
    while deepest is not None:
        if isinstance(deepest, socket.gaierror) or (isinstance(deepest, OSError) and deepest.strerror):
            return str(deepest.strerror)
        if isinstance(deepest, TimeoutError):
            return "timed out"
        deepest = deepest.__cause__ or deepest.__context__
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "timed out"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection broke"
    return f"{type(error).__name__}: {error}"
