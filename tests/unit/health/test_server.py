"""The server on real sockets: slow, greedy, rude and many clients."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from kilo.bus import Loop
from kilo.errors import PermanentError, TemporaryError
from kilo.health import server
from kilo.health.request import Refused, Request, Response, plain
from kilo.health.server import Job, Server, listening_socket
from tests.clock import bound
from tests.feeding import eventually
from tests.unit.health.client import Address, answer, exchange, fetch, read


class Serving:
    """A server on a loop in a thread. ``gate`` holds the jobs of /wait."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.gate = threading.Event()
        self.loop = Loop(on_error=self.errors.append)
        sock = listening_socket("127.0.0.1", 0)
        self.address: Address = sock.getsockname()
        self.server = Server(self.loop, sock, self._handle)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def _handle(self, request: Request) -> Response | Job:
        match request.path:
            case "/now":
                return plain(200, "now")
            case "/wait":
                return self._wait
            case "/large":
                return lambda: Response(200, bytes(64 << 20))
            case "/broken":
                raise ZeroDivisionError("broken")
            case "/broken-job":
                return self._broken
            case "/refused-job":
                return self._refused
        raise Refused(404, "no")

    def _wait(self) -> Response:
        self.gate.wait(20)
        return plain(200, "waited")

    def _broken(self) -> Response:
        raise ZeroDivisionError("broken job")

    def _refused(self) -> Response:
        raise Refused(501, "cannot", ("Retry-After", "9"))

    def close(self) -> None:
        self.gate.set()
        self.loop.post(self.server.close)
        self.loop.stop()
        self._thread.join()
        self.loop.close()


@pytest.fixture
def serving() -> Iterator[Serving]:
    serving = Serving()
    yield serving
    serving.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_answers_from_the_loop_and_from_a_thread(serving: Serving) -> None:
    serving.gate.set()
    assert fetch(serving.address, "/now").body == b"now\n"
    assert fetch(serving.address, "/wait").body == b"waited\n"
    assert fetch(serving.address, "/none").status == 404
    refused = fetch(serving.address, "/refused-job")
    assert (refused.status, refused.headers["retry-after"]) == (501, "9")


def test_head_gets_no_body(serving: Serving) -> None:
    got = fetch(serving.address, "/now", "HEAD")
    assert (got.status, got.headers["content-length"], got.body) == (200, "4", b"")


def test_a_request_in_pieces(serving: Serving) -> None:
    with socket.create_connection(serving.address) as sock:
        for piece in (b"GET /n", b"ow HTTP/1.1\r\nA: b\r", b"\n\r", b"\n"):
            sock.sendall(piece)
            time.sleep(0.02)
        assert answer(read(sock)).body == b"now\n"


def test_a_body_that_nobody_asked_for_does_not_lose_the_answer(serving: Serving) -> None:
    data = b"POST /now HTTP/1.1\r\nContent-Length: 20000\r\n\r\n" + bytes(20000)
    assert exchange(serving.address, data).status == 405
    assert exchange(serving.address, b"GET /" + b"a" * 20000).status == 431


def test_an_error_costs_its_request_and_is_reported(serving: Serving) -> None:
    assert fetch(serving.address, "/broken").status == 500
    assert fetch(serving.address, "/broken-job").status == 500
    assert fetch(serving.address, "/now").status == 200
    eventually(lambda: len(serving.errors) == 2)
    assert [str(error) for error in serving.errors] == ["broken", "broken job"]


@pytest.mark.timing
def test_many_slow_clients_delay_nobody_and_are_dropped(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "READ_LIMIT", 3.0)
    slow = [socket.create_connection(serving.address) for _ in range(150)]
    try:
        for sock in slow:
            sock.sendall(b"GET /now HTTP/1.1\r\nA: ")
        start = time.monotonic()
        for _ in range(20):
            assert fetch(serving.address, "/now").status == 200
        assert time.monotonic() - start < bound(2.5)
        for _ in range(18):  # a byte now and then does not buy time
            time.sleep(0.2)
            for sock in slow[:5]:
                try:
                    sock.sendall(b"x")
                except OSError as e:
                    assert e.errno in (errno.EPIPE, errno.ECONNRESET)
        assert answer(read(slow[-1])).status == 408
    finally:
        for sock in slow:
            sock.close()


def test_more_connections_than_allowed_push_out_the_oldest(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "OPEN_MAX", 10)
    before = descriptors()
    idle = [socket.create_connection(serving.address) for _ in range(60)]
    try:
        assert fetch(serving.address, "/now").status == 200
        assert descriptors() - before <= 60 + 12
        assert idle[0].recv(1) == b""
    finally:
        for sock in idle:
            sock.close()
    eventually(lambda: descriptors() <= before + 1)


def test_threads_are_bounded_and_probes_get_through(serving: Serving) -> None:
    threads = threading.active_count()
    data = b"GET /wait HTTP/1.1\r\n\r\n"
    waiting = [socket.create_connection(serving.address) for _ in range(server.THREADS_MAX)]
    try:
        for sock in waiting:
            sock.sendall(data)
        eventually(lambda: threading.active_count() >= threads + server.THREADS_MAX)
        busy = fetch(serving.address, "/wait")
        assert (busy.status, busy.headers["retry-after"]) == (503, "1")
        assert fetch(serving.address, "/now").status == 200
        serving.gate.set()
        assert all(answer(read(sock)).body == b"waited\n" for sock in waiting)
    finally:
        for sock in waiting:
            sock.close()
    eventually(lambda: threading.active_count() <= threads)
    assert fetch(serving.address, "/wait").status == 200


def test_a_client_that_does_not_read_is_given_up(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()
    with monkeypatch.context() as hasty, socket.create_connection(serving.address) as sock:
        hasty.setattr(server, "SEND_LIMIT", 0.5)
        sock.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        eventually(lambda: threading.active_count() > threads)
        assert fetch(serving.address, "/now").status == 200
        eventually(lambda: threading.active_count() <= threads, timeout=5)
    large = fetch(serving.address, "/large")
    assert len(large.body) == 64 << 20


def test_clients_that_go_away_leave_nothing(serving: Serving) -> None:
    fetch(serving.address, "/now")
    before = descriptors()
    for data in (b"", b"GET", b"GET /now HTTP/1.1\r\n\r\n", b"GET /large HTTP/1.1\r\n\r\n"):
        for _ in range(5):
            with socket.create_connection(serving.address) as sock:
                sock.sendall(data)
    eventually(lambda: descriptors() <= before)
    assert serving.errors == []


def test_nothing_runs_at_rest(serving: Serving) -> None:
    for _ in range(3):
        fetch(serving.address, "/now")
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.02


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_one_address(host: str) -> None:
    with listening_socket(host, 0) as sock:
        assert sock.getsockname()[0] == host
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", sock.getsockname()[1]), timeout=1)


def test_no_address_means_all_of_both_families() -> None:
    with listening_socket("", 0) as sock:
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, sock.getsockname()[1]), timeout=1).close()


def test_an_address_in_use_is_named_with_the_errno() -> None:
    with listening_socket("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(TemporaryError, match=rf"cannot listen on 127.0.0.1:{port}: .*errno 98"):
            listening_socket("127.0.0.1", port)
        with pytest.raises(TemporaryError, match=rf"cannot listen on :{port}: .*errno 98"):
            listening_socket("", port)
    with pytest.raises(TemporaryError, match=r"cannot listen on \[2001:db8::7\]:1: .*errno 99"):
        listening_socket("2001:db8::7", 1)
    with pytest.raises(PermanentError, match=r"cannot listen on 224.0.0.1.x:1: "):
        listening_socket("224.0.0.1.x", 1)
