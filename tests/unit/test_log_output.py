"""The log where it cannot be written: nobody is held up, and what is lost is counted."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kilo.log import LINE, Logger
from tests.clock import Given, bound

Pipe = tuple[int, int]
PROGRAM = """
import sys
from kilo.log import Logger, complain, own_outputs
from tests.clock import Given, bound
own_outputs()
log = Logger("x")
with Given() as clock:
    for number in range(3000):
        log.info("x" * 200, number=number)
        complain("y" * 200)
open(sys.argv[1], "w").write(str(clock.seconds))
sys.stdin.read(1)
log.info("last")
"""


def drain(fd: int) -> list[dict[str, object]]:
    """The lines that wait in a pipe."""
    data = b""
    while select.select([fd], [], [], 0)[0] and (more := os.read(fd, 1 << 20)):
        data += more
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.timing
def test_a_reader_that_is_gone_costs_the_lines_and_no_time(pipe: Pipe) -> None:
    os.close(pipe[0])
    log = Logger("x", fd=pipe[1])
    with Given() as clock:
        for _ in range(1000):
            log.info("m")
    assert clock.seconds < bound(0.5)
    assert log.dropped == 1000


@pytest.mark.timing
def test_a_reader_that_stands_still_is_waited_for_once_and_briefly(pipe: Pipe) -> None:
    log = Logger("x", fd=pipe[1])
    for number in range(1000):
        log.info("x" * 200, number=number)
    with Given() as clock:
        for number in range(1000, 5000):
            log.bind(a=1).info("x" * 200, number=number)
    assert clock.seconds < bound(1)
    before = drain(pipe[0])
    assert [line["number"] for line in before] == list(range(len(before))), "whole lines, in order"
    dropped = log.dropped
    assert dropped == 5000 - len(before) > 0
    log.info("one")
    log.info("two")
    one, two = drain(pipe[0])
    assert one["dropped"] == dropped
    assert "dropped" not in two
    assert log.dropped == dropped


def test_a_reader_that_is_only_slow_loses_nothing(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst of three times what a pipe holds, and a reader that wakes up when there is something."""
    monkeypatch.setattr("kilo.log.PATIENCE", 10.0)
    with subprocess.Popen(["wc", "-l"], stdin=pipe[0], stdout=subprocess.PIPE) as reader:
        log = Logger("x", fd=pipe[1])
        for number in range(700):
            log.info("x" * 200, number=number)
        os.close(pipe[1])
        counted = int(reader.communicate(timeout=90)[0])
    assert log.dropped == 0
    assert counted == 700


@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_several_on_an_output_that_nobody_reads(where: str, pipe: Pipe, tmp_path: Path) -> None:
    """None of them is held up, although each write has looked before whether there is room."""
    r, w = pipe if where == "pipe" else os.openpty()
    times = [tmp_path / str(n) for n in range(3)]
    command = [sys.executable, "-c", PROGRAM]
    programs = [
        subprocess.Popen([*command, str(t)], stdin=subprocess.PIPE, stdout=w, stderr=w) for t in times
    ]
    try:
        for file in times:
            end = time.monotonic() + 60
            while not (file.exists() and file.read_text()):
                assert time.monotonic() < end
                time.sleep(0.02)
            assert float(file.read_text()) < 2
        assert os.get_blocking(w), "the others who have it open do not notice"
    finally:
        threading.Thread(target=lambda: [p.communicate(b"\n") for p in programs]).start()
        while any(p.returncode is None for p in programs):
            if select.select([r], [], [], 0.1)[0]:
                os.read(r, 1 << 16)


def test_a_long_line_is_one_line_and_keeps_its_ends(pipe: Pipe) -> None:
    log = Logger("x", fd=pipe[1])
    log.error("worker died", trace="first" + "ä\n" * 10_000 + "last", objects=list(range(5000)))
    log.info("many", **{f"f{n}": "y" * 90 for n in range(100)})
    written = os.read(pipe[0], 1 << 20).splitlines(keepends=True)
    assert all(len(line) < LINE for line in written)
    long, many = (json.loads(line) for line in written)
    assert long["msg"] == "worker died"
    assert long["trace"].startswith("first") and long["trace"].endswith("last")
    assert "characters" in long["trace"]
    assert many["msg"] == "many" and many["level"] == "info"


def test_a_full_disk_costs_the_lines(tmp_path: Path) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    log = Logger("x", fd=fd)
    log.info("m")
    os.close(fd)
    log.info("m")
    assert log.dropped == 2


def test_a_file_gets_everything(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    log = Logger("x", fd=fd)
    for number in range(2000):
        log.info("x" * 200, number=number)
    os.close(fd)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(2000))
    assert log.dropped == 0


@pytest.mark.parametrize("odd", ["\udcff", {(1, 2): 3}, 10**400, float("nan")])
def test_what_no_json_has_is_told_in_another_way(pipe: Pipe, odd: object) -> None:
    Logger("x", fd=pipe[1]).info("m", odd=odd, text="plain")
    (line,) = drain(pipe[0])
    assert line["msg"] == "m" and line["text"] == "plain"
    assert "odd" in line
