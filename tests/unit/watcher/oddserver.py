"""An HTTP server that answers with whatever bytes a test gives, over TLS where it is given a context."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

Answer = Callable[[str], Iterator[bytes]]
"""From the first line of a request to the bytes that are sent, piece by piece."""


def whole(body: bytes, status: str = "200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    return head % (status.encode(), len(body)) + body


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class OddServer:
    """One request a connection. ``requests``: their heads, as they came."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> None:
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.requests: list[str] = []
        self.subjects: list[str] = []
        """Of the certificates that clients came with: their common names."""
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), plain:  # ValueError: gone before its handshake
            connection = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
            with connection:
                head = b""
                while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                    head += data
                    if head.startswith(b"\x16"):
                        break  # TLS, to a server that has none: it answers at once, as others do
                # A connection that is closed before its body is read is reset, and its answer may be lost.
                length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head, re.IGNORECASE)
                left = int(length[1]) - len(head.partition(b"\r\n\r\n")[2]) if length else 0
                while left > 0 and (data := connection.recv(left)):
                    left -= len(data)
                if isinstance(connection, ssl.SSLSocket) and (certificate := connection.getpeercert()):
                    subject = certificate["subject"]
                    self.subjects.append(str(subject[0][0][1]))
                self.requests.append(head.decode(errors="replace"))
                for part in self._answer(head.decode(errors="replace").partition("\r\n")[0]):
                    connection.sendall(part)


class Tunnel(OddServer):
    """A proxy that opens tunnels (CONNECT). ``requests``: the first lines of what it was asked."""

    def __init__(self) -> None:
        super().__init__(lambda request: iter([]))

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            head = b""
            while b"\r\n\r\n" not in head and (data := plain.recv(65536)):
                head += data
            line = head.decode().partition("\r\n")[0]
            self.requests.append(line)
            host, _, port = line.split()[1].rpartition(":")
            with socket.create_connection((host, int(port))) as other:
                plain.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pass_on, args=(other, plain), daemon=True)
                back.start()
                _pass_on(plain, other)
                back.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
