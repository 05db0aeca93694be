from __future__ import annotations

from typing import Any

import pytest

from kilo import goyaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("---\n", None),
        ("a: b\n---\n", {"a": "b"}),
        ("# c\n---\na: b\n...\n", {"a": "b"}),
        ("a: b\n---\na: c\n", {"a": "b"}),
        ("a: b\n---\n[", {"a": "b"}),
        ("---\n---\na: b\n", None),
        ("\ufeffa: b\n", {"a": "b"}),
        ("a: b\r\nc:\r\n- d\r\n", {"a": "b", "c": ["d"]}),
        ("a:\tb\t# c\n", {"a": "b"}),
        ("{\n\t\"a\":\t[\n\t\t1\n\t]\n}", {"a": [1]}),
        ("a: 2024-01-01\nb: 12:30\n", {"a": "2024-01-01", "b": "12:30"}),
        ("c: =\nd: 10:20:30.5\n", {"c": "=", "d": "10:20:30.5"}),
        ("a: yes\nb: 010\nc: 12\nd: '12'\n", {"a": True, "b": 8, "c": 12, "d": "12"}),
        ("a: !!binary YWJj\n", {"a": "abc"}),
        ("a: ~\nb: [null, 1]\nc: {d: null}\n", {"b": [1], "c": {}}),
        ("true: 1\n2: 2\n", {"true": 1, "2": 2}),
        ("a: &x {b: c}\nd: {<<: *x}\n", {"a": {"b": "c"}, "d": {"b": "c"}}),
        ("a: 1\na: 2\n", {"a": 2}),
    ],
)  # fmt: skip
def test_load_reads_what_kubectl_reads(text: str, value: Any) -> None:
    assert goyaml.load(text.encode()) == value


@pytest.mark.parametrize("text", ["\ta: b\n", "a:\n\tb: c\n", "a: [", "\0", "a: b: c", "!!timestamp x"])
def test_load_refuses_what_kubectl_refuses(text: str) -> None:
    with pytest.raises(goyaml.ERRORS):
        goyaml.load(text.encode())


def test_load_of_lists_in_lists_raises_and_does_not_crash() -> None:
    with pytest.raises(goyaml.ERRORS):
        goyaml.load(b"[" * 100_000)
