from __future__ import annotations

import pytest

from kilo.errors import ProtocolError
from kilo.watcher.impersonation import escaped, headers_of


def test_headers_of_a_whole_user_repeat_groups_and_extra_values() -> None:
    extra = {"scopes": ["view", "edit"], "acme.example/project": ["x"]}
    assert headers_of("jane", "7", ["dev", "ops, night"], extra) == (
        ("Impersonate-User", "jane"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Group", "dev"),
        ("Impersonate-Group", "ops, night"),
        ("Impersonate-Extra-scopes", "view"),
        ("Impersonate-Extra-scopes", "edit"),
        ("Impersonate-Extra-acme.example%2Fproject", "x"),
    )


def test_headers_of_no_user_are_none() -> None:
    assert headers_of("", "", [], {}) == ()


@pytest.mark.parametrize(
    ("key", "name"),
    [("a-b_c.d~e", "a-b_c.d~e"), ("a b", "a%20b"), ("50%", "50%25"), ("\u00e9", "%C3%A9"), ("a:b", "a%3Ab")],
)
def test_escaped_key_holds_only_what_a_header_name_may(key: str, name: str) -> None:
    assert escaped(key) == name


def test_headers_of_a_name_beyond_ascii_are_sent_as_utf8() -> None:
    assert headers_of("Zo\u00eb", "", [], {})[0][1].encode("latin-1") == "Zo\u00eb".encode()


@pytest.mark.parametrize(
    ("user", "uid", "groups", "reason"),
    [
        ("", "7", [], "as-uid is set and as is not"),
        ("", "", ["dev"], "as-groups is set and as is not"),
        ("a\r\nX: 1", "", [], "as holds a control character"),
        ("a", "", ["b\nc"], "as-groups holds a control character"),
        ("\ud800", "", [], "as holds half a character"),
    ],
)
def test_headers_of_what_cannot_be_sent_are_refused(
    user: str, uid: str, groups: list[str], reason: str
) -> None:
    with pytest.raises(ProtocolError, match=reason):
        headers_of(user, uid, groups, {})


def test_headers_of_an_extra_key_that_is_no_text_are_refused() -> None:
    with pytest.raises(ProtocolError, match="as-user-extra holds half a character"):
        headers_of("a", "", [], {"\ud800": ["b"]})


def test_headers_of_extra_without_user_are_refused() -> None:
    with pytest.raises(ProtocolError, match="as-user-extra is set and as is not"):
        headers_of("", "", [], {"scopes": []})
