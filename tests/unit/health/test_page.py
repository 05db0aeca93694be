"""The page: everything at a glance, nothing unescaped, nothing stale passed off as new."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from kilo.health.gather import Snapshot
from kilo.health.page import CELL_MAX, ROWS_MAX, ago, render, size
from kilo.model.host import Failure, HostFacts, WireGuardPeerState
from kilo.model.readiness import WorkerView
from kilo.model.topology import PeerView, TopologyItem
from tests.unit.health.samples import NOW, key, problem, segment, snapshot, state, topology, views

EVIL = "<script>alert('x')</script>\"'&<img src=x onerror=y>"


class Reader(HTMLParser):
    """Tags, and the text of each section by its heading; says so if tags do not match."""

    VOID = {"meta", "img", "br"}

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {"": ""}
        self._open: list[str] = []
        self._heading = ""
        self.feed(document)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self._heading = data
            self.sections[data] = ""
        elif self._open and self._open[-1] != "style":
            self.sections[self._heading] += f" {data.strip()}"


def read(taken: Snapshot, drawable: bool = True) -> Reader:
    return Reader(render(taken, drawable))


def sections(**values: Any) -> dict[str, str]:
    found = read(snapshot(**values)).sections
    return {heading: re.sub(r"\s+", " ", text) for heading, text in found.items()}


def test_a_node_where_all_is_well() -> None:
    page = sections()
    assert "ready leader location:a 3 nodes, 2 segments, 1 peer " in page[""]
    assert page["What does not work"].strip() == "Nothing."
    assert "netctl ready 0 s ago 1 h 1 min 4242 1.5 s 20.0 MiB 12" in page["Workers"]
    assert "location:b b 2 10.4.0.2 203.0.113.2:51820" in page["Segments"]
    assert "30 s ago" in page["Segments"]
    assert "b2 location:b 10.2.21.0/24 10.0.2.2/24" in page["Nodes"]
    assert "a leader this node location:a" in page["Nodes"]
    assert f"b node {key(2)}" in page["WireGuard peers"]
    assert "203.0.113.2 port 51820 30 s ago 2.0 KiB 4.0 KiB" in page["WireGuard peers"]
    assert f"laptop peer {key(9)} 10.5.0.1/32 none yet" in page["WireGuard peers"]
    assert "userspace" in page["WireGuard peers"]


def test_nothing_comes_from_elsewhere_and_nothing_runs() -> None:
    tags = read(snapshot()).tags
    links = [v for _, attributes in tags for k, v in attributes.items() if k in ("src", "href")]
    assert links and all(link is not None and re.match(r"/(?!/)", link) for link in links)
    assert not {tag for tag, _ in tags} & {"script", "iframe", "object", "link", "form"}


def test_every_text_is_escaped() -> None:
    evil_segment = msgspec.structs.replace(
        segment(EVIL, 3),
        location=EVIL,
        cidrs=(EVIL,),
        private_ips=(EVIL,),
        wireguard_ip=EVIL,
        allowed_ips=(EVIL,),
    )
    items: dict[str, TopologyItem] = {
        **topology(),
        EVIL: evil_segment,
        "peer": PeerView(EVIL, EVIL, (EVIL,)),
    }
    bad = state(
        "mesh",
        phase=EVIL,
        failing={EVIL: Failure(EVIL, int(NOW))},
        errors={EVIL: 1},
        info={EVIL: EVIL},
        gauges={EVIL: 1.0},
    )
    taken = snapshot(
        hostname=EVIL,
        topology=items,
        workers=views(mesh=WorkerView("mesh", bad, 0.1)),
        problems={"x": problem(EVIL, EVIL, EVIL, EVIL)},
        wireguard={EVIL: WireGuardPeerState(EVIL, EVIL)},
        host=HostFacts(EVIL, wireguard=EVIL),
    )
    page = read(taken)
    assert not {tag for tag, _ in page.tags} & {"script"}
    assert sum(tag == "img" for tag, _ in page.tags) == 1
    for heading in ("", "What does not work", "Workers", "Segments", "Nodes", "WireGuard peers"):
        assert EVIL in page.sections[heading], heading
    stale = views(mesh=WorkerView("mesh", bad, 9.0))
    assert EVIL in read(snapshot(workers=stale)).sections["Workers"]


def test_what_does_not_work_says_since_when() -> None:
    failing = state("netctl", failing={"route/10.2.0.0/24": Failure("no such device", int(NOW) - 75)})
    page = sections(
        workers=views(netctl=WorkerView("netctl", failing, 0.1)), problems={"1": problem("node-7")}
    )
    assert "failing netctl no such device route/10.2.0.0/24 1 min 15 s" in page["What does not work"]
    assert "left out node node-7 key is not set 2 h 1 min" in page["What does not work"]


@pytest.mark.parametrize(
    ("worker", "headings"),
    [
        ("mesh", ("Graph", "Segments", "Nodes")),
        ("netctl", ("WireGuard peers",)),
        ("watcher", ("What does not work",)),
    ],
)
def test_what_a_silent_worker_said_is_marked(worker: str, headings: tuple[str, ...]) -> None:
    gone = WorkerView(worker, state(worker), 65.0)
    page = sections(workers=views(**{worker: gone}))
    assert "not ready" in page[""]
    assert f"not ready {worker} not heard for 65 s" in page["What does not work"]
    assert f"{worker} stale was ready 1 min 5 s ago 4242" in page["Workers"]
    for heading in headings:
        assert f"{worker} has not been heard for 1 min 5 s: this may be out of date." in page[heading]


def test_a_handshake_from_a_silent_netctl_is_not_shown_as_good() -> None:
    assert '<span class="badge good">30 s ago' in render(snapshot(), True)
    gone = views(netctl=WorkerView("netctl", state("netctl"), 65.0))
    assert '<span class="badge good">30 s ago' not in render(snapshot(workers=gone), True)


def test_a_session_that_is_over_is_not_shown_as_good() -> None:
    old = {key(2): WireGuardPeerState(key(2), "203.0.113.2", 51820, int(NOW) - 181)}
    document = render(snapshot(wireguard=old), True)
    assert '<span class="badge dim">3 min 1 s ago' in document


def test_before_anything_is_known() -> None:
    nobody = {name: WorkerView(name) for name in views()}
    page = sections(workers=nobody, topology=None, problems=None, wireguard=None, host=None)
    assert "not ready" in page[""]
    assert page["Workers"].count("never heard") == 5
    assert "There is no topology yet." in page["Graph"]
    assert "watcher has not been heard yet" in page["What does not work"]
    assert "Nothing." not in page["What does not work"]


def test_problems_not_read_yet_are_not_no_problems() -> None:
    assert "has not read the cluster yet" in sections(problems=None)["What does not work"]


def test_the_picture_is_there_only_if_it_can_be_drawn() -> None:
    assert 'src="/graph?v=1"' in render(snapshot(), True)
    assert "<img" not in render(snapshot(), False)


def test_long_tables_and_cells_say_how_much_is_not_shown() -> None:
    many = {f"segment/{i}": segment(f"n{i}", i) for i in range(ROWS_MAX + 7)}
    page = read(snapshot(topology=many))
    assert "and 7 more" in page.sections["Segments"]
    assert sum(tag == "tr" for tag, _ in page.tags) < 3 * ROWS_MAX
    long = msgspec.structs.replace(segment("x", 1), allowed_ips=tuple(map(str, range(CELL_MAX + 3))))
    assert "and 3 more" in sections(topology={"segment/x": long})["Segments"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (90061, "1 d 1 h")],
)
def test_ages(seconds: float, text: str) -> None:
    assert ago(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_peer_that_lost_its_key_has_no_row_of_another() -> None:
    mesh = topology() | {
        "peer/copy": PeerView("copy", key(9), ("10.5.0.2/32",), key_lost=True),
        "segment/location:b": msgspec.structs.replace(segment("b", 2, "b2"), key_lost=True),
    }
    page = sections(topology=mesh)
    assert f"laptop peer {key(9)} 10.5.0.1/32" in page["WireGuard peers"]
    assert "copy" not in page["WireGuard peers"]
    assert "another has its key" in page["Segments"]


def test_control_characters_are_escapes() -> None:
    mesh = topology() | {"peer/x": PeerView("x\x00\x1b\u202e", key(5), ("10.5.0.2/32",))}
    document = render(snapshot(topology=mesh), True)
    assert "x\\x00\\x1b\\u202e" in document
    assert document.replace("\n", "").isprintable()
