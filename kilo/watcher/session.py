"""Who we are to the API server, kept up to date: what every request needs, ready for it.

A change of the files (a service account's token is rotated every hour), the end of a credential, or
the server's refusal (401) makes everything be read, and a plugin or provider asked, anew. That is
done on a thread of its own, and waited for so long and no longer, since a program or a provider may
take for ever. What was there before is used on while it is valid.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, InsecureRequestWarning

from kilo.errors import KiloError, PermanentError, ProtocolError, TemporaryError
from kilo.watcher.access import Access, Stamp, bearer, read_access, stamp_of
from kilo.watcher.identity import Identity
from kilo.watcher.official import authorization_of, official
from kilo.watcher.plugin import PluginRunner
from kilo.watcher.proxy import Proxy, of_environment
from kilo.watcher.reasons import Way
from kilo.watcher.redacted import redacted
from kilo.watcher.tls import Tls, context_of, seeing
from kilo.watcher.url import basic_of, parsed
from kilo.watcher.x509 import Certificate, decode_certificate

WITHIN = 20.0
"""s that a request waits for credentials; more than a plugin may take."""
AGAIN_AFTER = 10.0
"""s until what failed, or was refused, is tried again, unless a file has changed."""
EARLY = 10.0
"""s before its end that a credential is renewed."""
SEE_WITHIN = 5.0
"""s for a look at the server's certificate, each for the connection and its handshake."""
KEEPALIVE = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 40_000),
]
"""A peer that vanished is noticed after 40 s, also where nothing is sent."""


@dataclass(frozen=True)
class Session:
    """``authorization``: the value of that header, or "". ``expires``: in Unix s, None for never."""

    server: str
    pool: urllib3.PoolManager
    way: Way
    identity: Identity
    authorization: str = field(default="", repr=False)
    expires: float | None = None
    files: Mapping[str, Stamp] = field(default_factory=dict)
    impersonation: tuple[tuple[str, str], ...] = ()
    """Headers of every request, by which the user acts as another one."""

    @property
    def forwarded(self) -> Proxy | None:
        """The proxy that reads and forwards each request; one that opens a tunnel does not."""
        return None if self.server.startswith("https:") else self.way.proxy

    def valid(self, ahead: float = 0.0) -> bool:
        """Whether the credential has not ended, and will not within so many seconds."""
        return self.expires is None or time.time() + ahead < self.expires


class _Renewal(threading.Event):
    """A renewal under way; set when it has ended, with a ``session`` if it went well."""

    def __init__(self, files: Mapping[str, Stamp]) -> None:
        super().__init__()
        self.files = files
        self.began = time.monotonic()
        self.session: Session | None = None


class Sessions:
    """For the flags ``--kubeconfig`` and ``--master``. Any thread may use it.

    ``on_failure`` is called, on any thread, with the reason when credentials cannot be renewed, and
    with "" when they can. Raises PermanentError if the configuration cannot be read; at that time no
    plugin is run, and nobody is asked.
    """

    def __init__(self, kubeconfig: str, master: str, on_failure: Callable[[str], None]) -> None:
        self._read: Callable[[], Access] = lambda: read_access(kubeconfig, master)
        self._on_failure = on_failure
        self._runner = PluginRunner()
        self._lock = threading.Lock()
        self._renewal: _Renewal | None = None
        self._transport: tuple[str, str, Tls] | None = None
        self._session: Session | None = None
        self._refused = False
        self._failure = ""
        self._tried: tuple[float, Mapping[str, Stamp]] = float("-inf"), {}
        self._closed = False
        self.access = self._read()
        if self.access.plugin or self.access.provider:
            tls, source = self.access.tls, self.access.source
            _pool(self.access, tls, _context(self.access, tls, source))  # for what it may say
        else:
            self._session = self._made(self.access)

    def current(self, within: float | None = None) -> Session:
        """What to use now. Raises TemporaryError if there is nothing.

        Who is in a hurry, and must be done ``within`` s, gets half of that, and may be given one that
        has ended; without it the wait is WITHIN.
        """
        files = {path: stamp_of(path) for path in self.access.files}
        with self._lock:
            mended = bool(self._failure) and self._fresh(files)
            if mended:  # what had changed has been changed back
                self._failure = ""
            if self._renewal is None and self._due(files):
                self._renewal = _Renewal(files)
                threading.Thread(
                    target=self._renew, args=(self._renewal,), name="credentials", daemon=True
                ).start()
            renewal = self._renewal
        if mended:
            self._on_failure("")
        if renewal is not None:
            limit = WITHIN if within is None else within / 2
            if not renewal.wait(max(0.0, renewal.began + limit - time.monotonic())) and within is None:
                self._failed(f"{self.access.giver}: no answer within {WITHIN:g} s")
            if renewal.session is not None:
                return renewal.session  # also if it has ended by our clock, which may be wrong
        with self._lock:
            if self._session is not None and (self._session.valid() or within is not None):
                return self._session
            raise TemporaryError(self._failure or f"{self.access.giver}: no answer in time")

    def refused(self, session: Session) -> None:
        """The server did not take this one."""
        with self._lock:
            self._refused |= session is self._session

    def close(self) -> None:
        """Kill a plugin that runs, and close the connections that are not in use."""
        with self._lock:
            self._closed = True
            session = self._session
        self._runner.stop()
        if session is not None:
            session.pool.clear()

    def _fresh(self, files: Mapping[str, Stamp]) -> bool:
        """Whether there is nothing to renew."""
        session = self._session
        return session is not None and not self._refused and session.files == files and session.valid(EARLY)

    def _due(self, files: Mapping[str, Stamp]) -> bool:
        if self._closed or self._fresh(files):
            return False
        at, tried = self._tried
        in_vain = self._failure or self._refused
        return not in_vain or files != tried or time.monotonic() - at >= AGAIN_AFTER

    def _renew(self, renewal: _Renewal) -> None:
        failure, access = "", self.access
        try:
            access = self._read()
            renewal.session = self._made(access)
        except KiloError as e:
            failure = str(e)
        except Exception as e:  # noqa: BLE001 - the thread's main loop; its text might quote a secret
            failure = f"{access.giver}: {type(e).__name__}"
        with self._lock:
            self._renewal, self._tried = None, (time.monotonic(), renewal.files)
            if renewal.session is not None:
                self.access, self._session, self._refused = access, renewal.session, False
                self._tried = time.monotonic(), access.files
        self._failed(failure)
        renewal.set()

    def _failed(self, failure: str) -> None:
        with self._lock:
            self._failure = failure
        self._on_failure(failure)

    def _made(self, access: Access) -> Session:
        """Raises KiloError."""
        tls, authorization, source = access.tls, access.authorization, access.source
        expires, credential = None, access.credential
        if access.plugin and access.kubeconfig:
            source = f"credential plugin {access.plugin.command}"
            given = self._runner.run(access.plugin, access.kubeconfig, tls.ca)
            expires, authorization = given.expires, _bearer(given.token, source)
            credential = f"the {'token' if given.token else 'client certificate'} of {source}"
            if given.certificate:
                tls = replace(tls, certificate=given.certificate, key=given.key)
        elif access.provider:
            source = access.giver
            authorization = _bearer(_provided(access), source)
            credential = f"the token of {source}"
        old, transport = self._session, (access.server, access.proxy, tls)
        if old is not None and transport == self._transport:
            pool = old.pool
        else:
            pool = _pool(access, tls, _context(access, tls, source))
            self._transport = transport
            if old is not None:
                old.pool.clear()
        client = f"the client certificate of {access.giver}" if tls.certificate else ""
        return Session(
            access.server,
            pool,
            Way(access.server, _proxy(access), access.name, access.authority, client),
            Identity(access.user, credential, authorization, tls.certificate),
            authorization,
            expires,
            access.files,
            access.impersonation,
        )

    def presented(self) -> Certificate | None:
        """The certificate that the server presents now, verified or not: asked for by a connection over which
        nothing is sent. None if it cannot be had."""
        access, context = self.access, seeing()
        pool = _pool(access, access.tls, _context(access, access.tls, access.source))
        seen = {"ssl_context": context, "cert_reqs": "CERT_NONE", "assert_hostname": False}
        pool.connection_pool_kw |= seen
        with suppress(HTTPError, OSError):
            pool.request("HEAD", access.server, retries=False, redirect=False, timeout=SEE_WITHIN)
        pool.clear()
        try:
            return decode_certificate(context.certificate)
        except ProtocolError:
            return None


def _provided(access: Access) -> str:
    """The token of an auth-provider. Raises TemporaryError, and what official.authorization_of lets out."""
    try:
        return authorization_of(access.provider or {}).partition(" ")[2]
    except TemporaryError as e:
        raise TemporaryError(f"{access.user}: {redacted(str(e))}") from e


def _bearer(token: str, source: str) -> str:
    try:
        return bearer(token) if token else ""
    except ProtocolError as e:
        raise TemporaryError(f"{source}: the token: {e}") from e


def _context(access: Access, tls: Tls, source: str) -> ssl.SSLContext | None:
    try:
        return context_of(tls) if access.server.startswith("https:") else None
    except ProtocolError as e:
        raise PermanentError(f"{source}: {e}") from e


def _proxy(access: Access) -> Proxy | None:
    """The kubeconfig's proxy counts wherever the server is; the environment's has exceptions."""
    if access.proxy:
        name = access.kubeconfig.cluster_name if access.kubeconfig else ""
        return Proxy(access.proxy, f"{access.source}: proxy-url of cluster {name!r}")
    return of_environment(access.server, os.environ)


def _pool(access: Access, tls: Tls, context: ssl.SSLContext | None) -> urllib3.PoolManager:
    """Connections to the server, through a proxy where the cluster or the environment names one."""
    library = official()
    configuration = library.configuration()
    configuration.host = access.server
    proxy = _proxy(access)
    # All that the library would find in the environment is settled here.
    configuration.proxy, configuration.no_proxy = proxy.url if proxy else None, ""
    configuration.proxy_ssl_context = context
    configuration.verify_ssl = tls.verify
    if tls.name and context is not None:
        configuration.tls_server_name = tls.name
    configuration.socket_options = KEEPALIVE
    configuration.connection_pool_maxsize = 4
    if not tls.verify:
        urllib3.disable_warnings(InsecureRequestWarning)
    with suppress(ProtocolError):  # the next step names a proxy that cannot be used
        url = parsed(proxy.url if proxy else "")
        if url.scheme in ("http", "https") and (user := basic_of(url)):
            configuration.proxy_headers = {"proxy-authorization": user}
    try:
        pool: urllib3.PoolManager = library.rest_client(configuration).pool_manager
    except (HTTPError, ValueError, ImportError) as e:
        why = "this is not the URL of one, http:// or https://"
        if isinstance(e, ImportError):
            why = "that takes the Python package PySocks"
        raise PermanentError(f"{proxy} cannot be used: {why}") from None
    pool.connection_pool_kw["ssl_context"] = context
    return pool
