"""The log: JSON lines that tools can read."""

from __future__ import annotations

import json
import re

import pytest

from kilo.log import LEVELS, LINE, Logger


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_a_line_has_its_fields_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    Logger("mesh").bind(node="a").info("hello", n=1)
    (line,) = lines(capfd)
    assert list(line) == ["ts", "level", "component", "msg", "node", "n"]
    assert line["level"] == "info"
    assert line["component"] == "mesh"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line["ts"]))


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_shows_itself_and_what_is_graver(level: str, capfd: pytest.CaptureFixture[str]) -> None:
    log = Logger("x", level)
    for write in (log.debug, log.info, log.warn, log.error):
        write("m")
    shown = [line["level"] for line in lines(capfd)]
    wanted = {"all": LEVELS[1:5], "none": ()}.get(level, LEVELS[LEVELS.index(level) : 5])
    assert shown == list(wanted)


def test_the_level_can_change_while_running(capfd: pytest.CaptureFixture[str]) -> None:
    log = Logger("x", "error")
    child = log.bind(a=1)
    log.level = "debug"
    child.debug("m")
    assert [line["msg"] for line in lines(capfd)] == ["m"]


def test_what_cannot_be_encoded_does_not_stop_anybody(capfd: pytest.CaptureFixture[str]) -> None:
    Logger("x").info("m", odd=object(), text="line\nbreak")
    (line,) = lines(capfd)
    assert line["text"] == "line\nbreak"


def test_control_characters_are_escapes_of_json(capfd: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b\0\x7f\x9b\u202e\u2028\U000e0001é"
    Logger("x").info("m", text=text, listed=[text])
    written = capfd.readouterr().out
    assert written.rstrip("\n").isprintable()
    assert json.loads(written)["text"] == text
    assert json.loads(written)["listed"] == [text]


def test_long_line_of_control_characters_is_one_write(capfd: pytest.CaptureFixture[str]) -> None:
    Logger("x").info("m", text="\u202e" * LINE)
    written = capfd.readouterr().out
    assert len(written.encode()) <= LINE
    assert json.loads(written)["msg"] == "m"
