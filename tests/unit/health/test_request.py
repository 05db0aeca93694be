"""Requests and responses as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.health.request import HEAD_MAX, Refused, Request, Response, complete, encode, parse, plain


@pytest.mark.parametrize(
    ("head", "request_"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Request("GET", "/")),
        (b"HEAD /health HTTP/1.0\n\n", Request("HEAD", "/health")),
        (b"GET /graph?format=svg&layout=dot HTTP/1.1\r\n\r\n", None),
        (b"GET http://10.0.0.1:1107/metrics HTTP/1.1\r\n\r\n", Request("GET", "/metrics")),
        (b"GET /graph?format= HTTP/1.1\r\n\r\n", Request("GET", "/graph", {"format": [""]})),
    ],
)
def test_what_is_understood(head: bytes, request_: Request | None) -> None:
    expected = request_ or Request("GET", "/graph", {"format": ["svg"], "layout": ["dot"]})
    assert complete(head)
    assert parse(head) == expected


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"GET /?" + b"a=1&" * 50 + b" HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n\r\n", 405),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_what_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(Refused) as refused:
        parse(head)
    assert refused.value.status == status


def test_a_head_that_never_ends_is_refused() -> None:
    assert not complete(b"GET / HTTP/1.1\r\nA: b\r\n")
    with pytest.raises(Refused) as refused:
        complete(b"a" * (HEAD_MAX + 1))
    assert refused.value.status == 431


@given(st.binary(max_size=300))
def test_any_bytes_are_understood_or_refused(head: bytes) -> None:
    try:
        assert parse(head).method in ("GET", "HEAD")
    except Refused as e:
        assert 400 <= e.status < 500


def test_a_response_says_its_length_and_forbids_what_a_page_needs_not() -> None:
    text = encode(Response(200, b"body", "image/png", (("Retry-After", "1"),))).decode()
    head, _, body = text.partition("\r\n\r\n")
    lines = head.split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert {"Content-Length: 4", "Content-Type: image/png", "Retry-After: 1", "Connection: close"} < set(
        lines
    )
    assert "X-Content-Type-Options: nosniff" in lines
    assert any(line.startswith("Content-Security-Policy: default-src 'none'") for line in lines)
    assert body == "body"


def test_head_has_the_length_and_no_body() -> None:
    text = encode(plain(404, "no"), head_only=True)
    assert b"Content-Length: 3\r\n" in text
    assert text.endswith(b"\r\n\r\n")
