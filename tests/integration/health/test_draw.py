"""Drawings by the real ``dot``, and by programs that misbehave."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from kilo.health import draw
from kilo.health.draw import Artist, Busy, CannotDraw, NotInstalled, Order
from kilo.health.site import dot
from tests.clock import Given, bound
from tests.feeding import eventually
from tests.unit.health.samples import snapshot

SVG = Order(1, "circo", "svg")
GRAPH = "digraph { a -> b }"


def program(path: Path, body: str) -> str:
    """A program in the place of ``dot``; it writes its process id beside itself."""
    path.write_text(f'#!/bin/sh\necho $$ > "{path}.pid"\n{body}\n')
    path.chmod(0o755)
    return str(path)


def ended(path: Path) -> bool:
    return not os.path.exists(f"/proc/{Path(f'{path}.pid').read_text().strip()}")


@pytest.mark.parametrize("layout", draw.LAYOUTS)
@pytest.mark.parametrize(
    ("format_", "start"),
    [("svg", b"<?xml"), ("png", b"\x89PNG\r\n"), ("json", b"{")],
    ids=["svg", "png", "json"],
)
def test_every_layout_and_format(layout: str, format_: str, start: bytes) -> None:
    drawing = Artist().draw(Order(1, layout, format_), lambda: dot(snapshot()))
    assert drawing.startswith(start)
    if format_ == "json":
        names = {item["name"] for item in json.loads(drawing)["objects"]}
        assert {"a", "b", "b2", "laptop"} < names


def test_a_drawing_is_kept_until_the_topology_changes(tmp_path: Path) -> None:
    count = tmp_path / "count"
    artist = Artist(program(tmp_path / "dot", f"echo x >> {count}; cat"))
    for version, layout, runs in (
        (1, "circo", 1),
        (1, "circo", 1),
        (1, "dot", 2),
        (2, "circo", 3),
        (1, "dot", 4),
    ):
        artist.draw(Order(version, layout, "svg"), lambda: GRAPH)
        assert len(count.read_text().split()) == runs


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    monkeypatch.setattr(draw, "KEPT_BYTES", 3 * len(GRAPH) - 1)
    artist = Artist(program(tmp_path / "dot", f"echo x >> {count}; cat"))
    for layout in ("circo", "dot", "neato", "circo"):
        artist.draw(Order(1, layout, "svg"), lambda: GRAPH)
    assert len(count.read_text().split()) == 4


def test_not_installed(tmp_path: Path) -> None:
    artist = Artist(str(tmp_path / "none"))
    assert not artist.installed
    with pytest.raises(NotInstalled, match=r"graphviz.*format=dot"):
        artist.draw(SVG, lambda: GRAPH)
    assert Artist(program(tmp_path / "none", "cat")).installed
    assert artist.draw(SVG, lambda: GRAPH) == GRAPH.encode()


@pytest.mark.timing
def test_too_slow_is_killed_with_its_children_and_not_tried_again(tmp_path: Path) -> None:
    path, count = tmp_path / "dot", tmp_path / "count"
    artist = Artist(program(path, f"echo x >> {count}; sleep 60 & sleep 60"), time_limit=2.0)
    with Given() as clock:
        for _ in range(3):
            with pytest.raises(CannotDraw, match="more than 2 s"):
                artist.draw(SVG, lambda: GRAPH)
    assert clock.seconds < bound(4.7), "it is tried once"
    assert ended(path)
    assert len(count.read_text().split()) == 1


def test_a_program_that_does_not_read_does_not_hang_the_writer(tmp_path: Path) -> None:
    artist = Artist(program(tmp_path / "dot", "sleep 60"), time_limit=0.3)
    with pytest.raises(CannotDraw, match="more than"):
        artist.draw(SVG, lambda: GRAPH * 100_000)


def test_output_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "SIZE_LIMIT", 1 << 20)
    path = tmp_path / "dot"
    with pytest.raises(CannotDraw, match="larger than 1 MiB"):
        Artist(program(path, "exec cat /dev/zero")).draw(SVG, lambda: GRAPH)
    assert ended(path)


def test_a_failure_says_so(tmp_path: Path) -> None:
    with pytest.raises(CannotDraw, match="ended with status 3"):
        Artist(program(tmp_path / "dot", "exit 3")).draw(SVG, lambda: GRAPH)
    with pytest.raises(CannotDraw, match="ended with status"):
        Artist().draw(SVG, lambda: "this is no graph {")


def test_one_at_a_time_and_who_waits_too_long_is_told(tmp_path: Path) -> None:
    path, go = tmp_path / "dot", tmp_path / "go"
    artist = Artist(program(path, f"until [ -e {go} ]; do sleep 0.05; done; cat"), wait_limit=0.1)
    first = threading.Thread(target=lambda: artist.draw(SVG, lambda: GRAPH))
    first.start()
    eventually(Path(f"{path}.pid").exists)
    with pytest.raises(Busy):
        artist.draw(Order(1, "dot", "svg"), lambda: GRAPH)
    go.touch()
    first.join()
    assert artist.draw(SVG, lambda: GRAPH) == GRAPH.encode()


def test_it_runs_at_low_priority_with_a_bare_environment(tmp_path: Path) -> None:
    os.environ["KGT_SECRET"] = "1"
    try:
        artist = Artist(program(tmp_path / "dot", "cat > /dev/null; ulimit -v; nice; env"))
        lines = artist.draw(SVG, lambda: GRAPH).decode().splitlines()
    finally:
        del os.environ["KGT_SECRET"]
    nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + draw.NICE)
    assert lines[:2] == [str(draw.MEMORY_LIMIT >> 10), str(nice)]
    names = {line.partition("=")[0] for line in lines[2:]}
    assert {"PATH", "LANG", "SERVER_NAME"} <= names
    assert names <= {"PATH", "LANG", "SERVER_NAME", "PWD", "OLDPWD", "SHLVL", "_"}
