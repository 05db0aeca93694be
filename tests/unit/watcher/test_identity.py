from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from kilo.watcher.identity import Identity, expiry_of
from kilo.watcher.x509 import decode_pem, shown_time
from tests.unit.watcher.certificates import issue


def jwt(claims: Any) -> str:
    """A token whose signature is none."""
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


@pytest.mark.parametrize(
    ("token", "ends"),
    [
        (jwt({"exp": 1_000_000}), 1e6),
        (jwt({"exp": 1_000_000.5, "sub": "\u00fc"}), 1_000_000.5),
        (jwt({}), None),
        (jwt({"exp": "soon"}), None),
        (jwt({"exp": True}), None),
        (jwt({"exp": 1e300}), None),
        (jwt({"exp": float("nan")}), None),
        (jwt([1]), None),
        ("opaque", None),
        ("a.b.c", None),
        ("a.\u00e9.c", None),
        ("..", None),
        (f"x.{base64.urlsafe_b64encode(b'[' * 100_000).decode()}.y", None),
    ],
)
def test_expiry_is_what_a_jwt_says_and_nothing_of_others(token: str, ends: float | None) -> None:
    assert expiry_of(f"Bearer {token}") == ends


def test_identity_with_an_expired_token_says_when_and_from_where() -> None:
    found = Identity("user 'u' of /k", "the token in /x/token", f"Bearer {jwt({'exp': 1_000_000})}")
    said = "the server does not accept the token in /x/token, which expired at 1970-01-12T13:46:40Z"
    assert found.refused(1_000_001) == said
    assert found.mend(1_000_001) == "renew it there, and see why it was not renewed"
    assert found.refused(999_999) == "the server does not accept the token in /x/token"
    assert "still accepts" in found.mend(999_999)
    assert "e30" not in repr(found)


def test_identity_with_an_expired_certificate_says_when(tmp_path: Path) -> None:
    pem = issue(tmp_path, "client")
    ends = decode_pem(pem).ends
    found = Identity("user 'u' of /k", "the client certificate of user 'u' of /k", certificate=pem)
    assert found.refused(ends).endswith(f"user 'u' of /k, which expired at {shown_time(ends)}")
    assert "expired" not in found.refused(ends - 1)


def test_identity_of_nothing_says_that_there_are_no_credentials() -> None:
    assert Identity("user 'u' of /k").refused(0) == (
        "the request has no credentials, since user 'u' of /k has none"
    )
