"""What a person is shown of what a program or library says when it fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.watcher.redacted import LONGEST, redacted

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"token={SECRET}",
        f'{{"access_token": "{SECRET}", "expires_in": 5}}',
        f"Authorization: Bearer {SECRET}",
        f"the header was: bearer {SECRET}",
        f"--client-secret={SECRET} is not known",
        f"password: '{SECRET}'",
        f"refresh-token:{SECRET}",
        f"POST /token?client_secret={SECRET}&grant_type=x: 400",
        f"https://me:{SECRET}@sts.example.com/ does not answer",
        f"cannot use {SECRET}Abc0123456789Xyz",
        f"cannot use 0123456789abcdef0123456789{SECRET}",
        f"cannot use ey{SECRET}.Header-.Claims-{'x' * 40}",
    ],
)
def test_what_may_be_a_secret_is_not_shown(text: str) -> None:
    assert SECRET not in redacted(text)
    assert "***" in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "no such profile",
        "open /etc/kubernetes/pki/admin-2026.json: no such file or directory",
        "dial tcp 192.0.2.1:443: connect: connection refused",
        "UnrecognizedClientException: the security token included in the request is invalid",
        "lookup sts.eu-central-1.amazonaws.com on 10.96.0.10:53: server misbehaving",
        "request 7d3f8e0a-1f2b-4c5d-8e9f-0a1b2c3d4e5f was denied",
    ],
)
def test_what_helps_is_shown(text: str) -> None:
    assert redacted(text) == text


@given(st.text())
def test_it_is_one_line_and_not_long(text: str) -> None:
    shown = redacted(text * 9)
    assert len(shown) <= LONGEST
    assert shown.isprintable()
