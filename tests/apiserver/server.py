"""An HTTP server on one thread: many connections, long streams, no thread per client.

It may run on the cores that are being measured, so an event for two hundred watches costs two
hundred sends and no switch of threads. What it answers is the business of a handler.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from tests.apiserver.wire import BadRequest, Request, take_request

T = TypeVar("T")
RESET = struct.pack("ii", 1, 0)
UNREAD_LIMIT = 256 << 20
"""Bytes that may wait for a client that does not read, before its connection is closed."""


class Connection:
    """One client. All methods are for the server's own thread."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.sock = sock
        self.incoming = bytearray()
        self.busy = False
        """An answer is still to come: the next request waits for it."""
        self._server = server
        self._outgoing = bytearray()
        self._closing = False
        self.closed = False

    def send(self, data: bytes, close: bool = False) -> None:
        """Queue ``data``; with ``close``, end the connection behind it."""
        if self.closed:
            return
        self._closing |= close
        if not self._outgoing:
            with contextlib.suppress(BlockingIOError):
                try:
                    data = data[self.sock.send(data) :]
                except OSError as e:
                    if not isinstance(e, BlockingIOError):
                        self.close()
                        return
                    raise
        self._outgoing += data
        if len(self._outgoing) > UNREAD_LIMIT or (self._closing and not self._outgoing):
            self.close()
        else:
            self._server.interest(self, bool(self._outgoing))

    def flush(self) -> None:
        """Send more of what waits."""
        try:
            sent = self.sock.send(self._outgoing)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._outgoing[:sent]
        if not self._outgoing:
            if self._closing:
                self.close()
            else:
                self._server.interest(self, False)

    def close(self, reset: bool = False) -> None:
        """End at once, with ``reset`` by a RST."""
        if self.closed:
            return
        self.closed = True
        if reset:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._server.forget(self)
        self.sock.close()


class Server:
    """Listens, reads requests, and hands each to ``handler``, all on a thread of its own."""

    def __init__(self, address: tuple[str, int], handler: Callable[[Connection, Request], None]) -> None:
        self.connections: set[Connection] = set()
        self.paused = False
        self._handler = handler
        self._family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._woken)
        self._listener: socket.socket | None = None
        self._running = True
        self.address = address
        self.listen()
        self._thread = threading.Thread(target=self._run, name="apiserver", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close everything. The thread is gone afterwards."""
        if self._thread.is_alive():
            self.call(self._stop)
            self._thread.join()

    def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` on the server's thread and wait for what it returns or raises."""
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            return function()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as e:  # noqa: BLE001 - handed to the caller
                future.set_exception(e)

        self._calls.append(run)
        os.write(self._wake_w, b"x")
        return future.result()

    def later(self, delay: float, function: Callable[[], None]) -> None:
        """Run ``function`` once, on the server's thread, ``delay`` seconds from now."""
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._count), function))

    def listen(self) -> None:
        """Accept connections, again on the same port."""
        listener = socket.socket(self._family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self.address)
        listener.listen(512)
        listener.setblocking(False)
        self.address = listener.getsockname()[:2]
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def refuse(self) -> None:
        """Close the port and every connection: who connects is refused."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        self.drop(reset=False)

    def drop(self, reset: bool) -> None:
        """Close every connection."""
        for connection in list(self.connections):
            connection.close(reset)

    def resume(self) -> None:
        """End a pause: read the requests that wait."""
        self.paused = False
        for connection in list(self.connections):
            self.serve(connection)

    def interest(self, connection: Connection, writing: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
        if self._selector.get_key(connection.sock).events != events:
            self._selector.modify(connection.sock, events, connection)

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._selector.unregister(connection.sock)

    def serve(self, connection: Connection) -> None:
        """Handle the requests that are complete, as long as each is answered at once."""
        while not (self.paused or connection.busy or connection.closed):
            try:
                request = take_request(connection.incoming)
            except (BadRequest, ValueError):
                connection.close()
                return
            if request is None:
                return
            self._handler(connection, request)

    def _run(self) -> None:
        while self._running:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, mask in self._selector.select(timeout):
                if isinstance(key.data, Connection):
                    self._on_connection(key.data, mask)
                else:
                    key.data()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()

    def _on_connection(self, connection: Connection, mask: int) -> None:
        if mask & selectors.EVENT_WRITE and not connection.closed:
            connection.flush()
        if mask & selectors.EVENT_READ and not connection.closed:
            try:
                data = connection.sock.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                connection.close()
                return
            connection.incoming += data
            self.serve(connection)

    def _accept(self) -> None:
        if self._listener is None:  # it was closed since somebody called
            return
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = Connection(self, sock)
                self.connections.add(connection)
                self._selector.register(sock, selectors.EVENT_READ, connection)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def _stop(self) -> None:
        self._running = False
        self.refuse()
        self._selector.close()
        os.close(self._wake_r)
        os.close(self._wake_w)
