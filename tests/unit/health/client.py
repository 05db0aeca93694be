"""A bare HTTP client: one request, one connection."""

from __future__ import annotations

import socket
from typing import NamedTuple

Address = tuple[str, int]


class Answer(NamedTuple):
    """``headers`` by name in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def fetch(address: Address, target: str, method: str = "GET", timeout: float = 15.0) -> Answer:
    return exchange(address, f"{method} {target} HTTP/1.1\r\nHost: kilo\r\n\r\n".encode(), timeout)


def exchange(address: Address, data: bytes, timeout: float = 15.0) -> Answer:
    """Send ``data``, and read until the server closes."""
    with socket.create_connection(address, timeout=timeout) as sock:
        sock.sendall(data)
        return answer(read(sock))


def read(sock: socket.socket) -> bytes:
    chunks = []
    while chunk := sock.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def answer(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(first.split()[1]), headers, body)
