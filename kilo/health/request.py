"""The little of HTTP/1.1 that is spoken here: GET and HEAD, no bodies, one request a connection.

Pure: bytes in, a Request out; a Response in, bytes out. Used within kilo.health alone.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from kilo.errors import KiloError

HEAD_MAX = 8192
TARGET_MAX = 2048
QUERY_MAX = 16
TEXT = "text/plain; charset=utf-8"
METHODS = ("GET", "HEAD")
_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) ([\x21-\x7e]+) HTTP/1\.[01]\r?")
_HEADERS = (
    "Connection: close\r\n"
    "Cache-Control: no-store\r\n"
    "Content-Security-Policy: default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "X-Content-Type-Options: nosniff\r\n"
)


@dataclass(frozen=True)
class Request:
    """``path`` as it stands in the request; ``query``: the values given for each name."""

    method: str
    path: str
    query: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """``headers`` are beside those that every response has."""

    status: int
    body: bytes
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


class Refused(KiloError):
    """A request that gets an answer of ``status`` with the reason, and nothing else."""

    def __init__(self, status: int, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers

    def response(self) -> Response:
        return plain(self.status, str(self), *self.headers)


def plain(status: int, text: str, *headers: tuple[str, str]) -> Response:
    """A line of text."""
    return Response(status, f"{text}\n".encode(), TEXT, headers)


def complete(head: bytes | bytearray) -> bool:
    """Whether the head of a request has come in full. Raises Refused when it never will."""
    if b"\r\n\r\n" in head or b"\n\n" in head:
        return True
    if len(head) > HEAD_MAX:
        raise Refused(431, f"the head of a request may have {HEAD_MAX} bytes")
    return False


def parse(head: bytes) -> Request:
    """A request of its head; headers are not looked at. Raises Refused."""
    match = _REQUEST_LINE.fullmatch(head.partition(b"\n")[0])
    if match is None:
        raise Refused(400, "not an HTTP/1 request")
    method, target = match.group(1).decode(), match.group(2).decode()
    if method not in METHODS:
        raise Refused(405, f"allowed: {', '.join(METHODS)}", ("Allow", ", ".join(METHODS)))
    if len(target) > TARGET_MAX:
        raise Refused(414, f"the target of a request may have {TARGET_MAX} bytes")
    try:
        url = urlsplit(target)
        query = parse_qs(url.query, keep_blank_values=True, max_num_fields=QUERY_MAX)
    except ValueError as e:
        raise Refused(400, "the target is not a URL, or has too many parameters") from e
    return Request(method, url.path or "/", query)


def encode(response: Response, head_only: bool = False) -> bytes:
    """The response as it goes over the wire, dated now."""
    reason = HTTPStatus(response.status).phrase
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    extra = "".join(f"{name}: {value}\r\n" for name, value in response.headers)
    head = (
        f"HTTP/1.1 {response.status} {reason}\r\nDate: {date}\r\n"
        f"Content-Type: {response.content_type}\r\nContent-Length: {len(response.body)}\r\n"
        f"{_HEADERS}{extra}\r\n"
    )
    return head.encode() + (b"" if head_only else response.body)
