"""HTTP/1.1 as the stand-in speaks it: requests out of bytes, answers into bytes. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

from tests.apiserver.store import encode

MAX_HEAD = 64 << 10
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """One request. ``headers`` have lower-case names; ``at`` is monotonic seconds."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    at: float = field(default_factory=time.monotonic)

    @property
    def watch(self) -> bool:
        return self.query.get("watch", "") in ("1", "true")

    def __str__(self) -> str:
        return f"{'WATCH' if self.watch else self.method} {self.path}"


class BadRequest(Exception):
    """What came is not HTTP/1.1 as clients speak it."""


def take_request(buffer: bytearray) -> Request | None:
    """The first request in ``buffer``, which it is removed from; None while it is not complete."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > MAX_HEAD:
            raise BadRequest("the head is too long")
        return None
    first, *lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3:
        raise BadRequest(f"not a request line: {first!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise BadRequest("chunked requests are not supported")
    total = end + 4 + int(headers.get("content-length", "0"))
    if len(buffer) < total:
        return None
    body = bytes(buffer[end + 4 : total])
    del buffer[:total]
    target = urlsplit(words[1])
    query = (
        {k: v[-1] for k, v in parse_qs(target.query, keep_blank_values=True).items()} if target.query else {}
    )
    return Request(words[0], unquote(target.path), query, headers, body)


def answer(status: int, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """A whole answer in JSON."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


def status_object(status: int, reason: str, message: str) -> bytes:
    """The Status object that says what went wrong."""
    value = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return encode({**value, "message": message, "reason": reason, "code": status})


def chunk(event: str, raw: bytes) -> bytes:
    """One line of a watch, as a chunk."""
    line = b'{"type":"%s","object":%s}\n' % (event.encode(), raw)
    return b"%x\r\n%s\r\n" % (len(line), line)
