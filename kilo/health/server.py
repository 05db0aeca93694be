"""The HTTP server: nothing runs at rest, and a slow client costs nobody else anything.

Heads of requests are read on the worker's loop, many at a time and each for a few seconds at most,
so that a client that sends slowly holds a descriptor and no thread. A handler either answers at
once, on the loop, or gives a job, which has a short-lived thread of its own for making and sending
the answer. Connections and threads are bounded: the oldest silent connection makes way for a new
one, and a request that would need one thread too many is told to come again. So liveness probes,
answered on the loop, get through whatever others do. Used by kilo.health.worker alone.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable

from kilo.bus import Loop, Timer
from kilo.errors import PermanentError, TemporaryError
from kilo.health.request import METHODS, Refused, Request, Response, complete, encode, parse, plain

Job = Callable[[], Response]
Handler = Callable[[Request], Response | Job]

OPEN_MAX = 256
THREADS_MAX = 16
ACCEPT_BATCH = 64
READ_LIMIT = 5.0
SEND_LIMIT = 10.0
LINGER_LIMIT = 2.0
"""Seconds for a client to send its request, to take its answer, and to close."""
DISCARD_MAX = 1 << 16
BACKLOG = 128
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def listening_socket(host: str, port: int) -> socket.socket:
    """Bind and listen; no host means all addresses, of both families where the kernel has IPv6.

    Raises TemporaryError if it is in use or not there (yet), PermanentError if it cannot be had at
    all; both with the address and the errno.
    """
    last: OSError | None = None
    families = [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]
    if host:
        families = [(socket.AF_INET6 if ":" in host else socket.AF_INET, host)]
    for family, address in families:
        try:
            return _listen(family, address, port, dual=not host)
        except OSError as e:
            last = e
            if e.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                break
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    reason = f"{last.strerror} (errno {last.errno})" if last else "no address family"
    passing = last is not None and last.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
    kind = TemporaryError if passing else PermanentError
    raise kind(f"cannot listen on {where}: {reason}") from last


def _listen(family: socket.AddressFamily, address: str, port: int, dual: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


class _Connection:
    """A client while the loop reads from it: its request at first, at the end what it sends too much."""

    __slots__ = ("head", "limit", "sock")

    def __init__(self, sock: socket.socket, limit: Timer) -> None:
        self.sock = sock
        self.limit = limit
        self.head = bytearray()


class Server:
    """Serves ``handler`` on ``sock``, which it owns, until ``close``."""

    def __init__(self, loop: Loop, sock: socket.socket, handler: Handler) -> None:
        self._loop = loop
        self._sock = sock
        self._handler = handler
        self._open: dict[int, _Connection] = {}
        self._working: set[socket.socket] = set()
        loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Listen no more, and drop who has not been answered."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for fd in list(self._open):
            self._take(fd).sock.close()
        for sock in self._working:
            sock.close()

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno in _EXHAUSTED:
                    self._pause()
                    return
                continue  # that client is gone already
            sock.setblocking(False)
            self._watch(sock, READ_LIMIT, self._read, self._too_slow)

    def _pause(self) -> None:
        """No descriptors left: the socket would stay readable, and the loop would spin."""
        fd = self._sock.fileno()
        self._loop.remove_reader(fd)
        self._loop.call_later(1.0, lambda: self._resume(fd))

    def _resume(self, fd: int) -> None:
        if self._sock.fileno() == fd:
            self._loop.add_reader(fd, self._accept)

    def _watch(
        self, sock: socket.socket, limit: float, read: Callable[[int], None], late: Callable[[int], None]
    ) -> None:
        if len(self._open) >= OPEN_MAX:
            self._take(next(iter(self._open))).sock.close()
        fd = sock.fileno()
        self._open[fd] = _Connection(sock, self._loop.call_later(limit, lambda: late(fd)))
        self._loop.add_reader(fd, lambda: read(fd))

    def _take(self, fd: int) -> _Connection:
        """Stop watching a connection."""
        connection = self._open.pop(fd)
        connection.limit.cancel()
        self._loop.remove_reader(fd)
        return connection

    def _read(self, fd: int) -> None:
        connection = self._open[fd]
        try:
            data = connection.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._take(fd).sock.close()
            return
        connection.head += data
        try:
            if not complete(connection.head):
                return
            sock = self._take(fd).sock
            request = parse(bytes(connection.head))
        except Refused as e:
            if fd in self._open:
                self._take(fd)
            self._send_now(connection.sock, encode(e.response()))
            return
        self._answer(sock, request)

    def _too_slow(self, fd: int) -> None:
        refused = Refused(408, f"a request must arrive within {READ_LIMIT:g} s")
        self._send_now(self._take(fd).sock, encode(refused.response()))

    def _answer(self, sock: socket.socket, request: Request) -> None:
        head_only = request.method == METHODS[1]
        try:
            answer = self._handler(request)
        except Refused as e:
            answer = e.response()
        except Exception:
            self._send_now(sock, encode(plain(500, "internal error"), head_only))
            raise
        if isinstance(answer, Response):
            self._send_now(sock, encode(answer, head_only))
        elif len(self._working) >= THREADS_MAX:
            busy = plain(503, "too many requests at a time", ("Retry-After", "1"))
            self._send_now(sock, encode(busy, head_only))
        else:
            self._working.add(sock)
            threading.Thread(target=self._work, args=(sock, answer, head_only), daemon=True).start()

    def _work(self, sock: socket.socket, job: Job, head_only: bool) -> None:
        """In a thread: make the answer and send it. Everything else is the loop's."""
        failed: Exception | None = None
        try:
            response = job()
        except Refused as e:
            response = e.response()
        except Exception as e:  # noqa: BLE001 - the thread's main body; the loop reports it
            failed, response = e, plain(500, "internal error")
        with contextlib.suppress(OSError):  # the client went away or was too slow
            sock.settimeout(SEND_LIMIT)  # holds for all of sendall
            sock.sendall(encode(response, head_only))
        self._loop.post(lambda: self._done(sock, failed))

    def _done(self, sock: socket.socket, failed: Exception | None) -> None:
        self._working.discard(sock)
        if sock.fileno() >= 0:
            sock.setblocking(False)
            self._linger(sock)
        if failed is not None:
            raise failed

    def _send_now(self, sock: socket.socket, data: bytes) -> None:
        """Send what is small enough for the socket's buffer, so that the loop never waits."""
        try:
            sent = sock.send(data)
        except OSError:
            sent = 0
        if sent < len(data):
            sock.close()
        else:
            self._linger(sock)

    def _linger(self, sock: socket.socket) -> None:
        """Let the client close first: unread input would make the kernel cut the answer off."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return
        self._watch(sock, LINGER_LIMIT, self._discard, lambda fd: self._take(fd).sock.close())

    def _discard(self, fd: int) -> None:
        try:
            data = self._open[fd].sock.recv(DISCARD_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection = self._open[fd]
        connection.head += data
        if not data or len(connection.head) > DISCARD_MAX:
            self._take(fd).sock.close()
