from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from kilo.model.text import printable, printable_json


def test_text_that_can_be_shown_stays() -> None:
    for text in ("", "node-1", 'a "b" <c> \\ é漢'):
        assert printable(text) == text


def test_characters_that_a_terminal_obeys_are_escapes() -> None:
    assert printable("a\0\x1b[2J\n\x7f\x9b") == r"a\x00\x1b[2J\n\x7f\x9b"
    assert printable("a\u202eb\u2066c\u2028\U000e0001\ud800") == r"a\u202eb\u2066c\u2028\U000e0001\ud800"


def test_text_that_is_too_long_loses_its_middle() -> None:
    assert printable("abcdefghij", 5) == "ab…ij"
    assert printable("abcde", 5) == "abcde"


@given(st.text(), st.integers(4, 9))
def test_text_is_always_printable_and_never_too_long(text: str, most: int) -> None:
    shown = printable(text, most)
    assert shown.isprintable()
    assert len(shown) <= most


@given(st.dictionaries(st.text(), st.text()))
def test_json_keeps_its_value_and_has_no_character_to_obey(value: dict[str, str]) -> None:
    shown = printable_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(shown) == value
    assert shown.replace("\n", "").isprintable()
