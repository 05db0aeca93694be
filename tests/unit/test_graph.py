from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from kilo.graph import LINE_MAX, Edge, dot, edges, labels
from kilo.mesh.describe import peer_views
from kilo.mesh.topology import Topology
from tests.unit.mesh.states import STATES, cluster, node, peer, topology

MESH = topology(STATES["with peers"])
PEERS = peer_views(MESH)


def test_leaders_hold_the_graph_together() -> None:
    assert list(edges(MESH.segments, PEERS)) == [
        Edge("n1", "n2", False),
        Edge("n3", "n4", False),
        Edge("n1", "n3", False),
        Edge("n1", "laptop", True),
        Edge("n1", "office", True),
        Edge("n3", "laptop", True),
        Edge("n3", "office", True),
    ]


def test_a_vertex_says_where_it_is() -> None:
    texts = labels(MESH.segments, PEERS)
    assert texts["n1"].splitlines() == [
        "location:x",
        "n1",
        "10.2.1.0/24",
        "10.0.0.1",
        "10.4.0.1",
        "203.0.113.1:51820",
    ]
    assert texts["n2"].splitlines() == ["location:x", "n2", "10.2.2.0/24", "10.0.0.2"]
    assert texts["laptop"] == "laptop"
    assert texts["office"].splitlines() == ["office", "198.51.100.9:51820"]


def test_graphviz_reads_it_whatever_the_names_are() -> None:
    odd = topology(cluster(node("n1", 'x"; \\ "y'), node("n2", "é\n")))
    program = shutil.which("dot")
    assert program
    for mesh, peers in ((MESH, PEERS), (odd, ())):
        text = dot(mesh.segments, peers, mesh.subnet)
        drawn = subprocess.run([program, "-Tplain"], input=text.encode(), capture_output=True, check=True)
        vertices = [line for line in drawn.stdout.splitlines() if line.startswith(b"node ")]
        assert len(vertices) == sum(len(s.hostnames) for s in mesh.segments) + len(peers)


def drawn(mesh: Topology, form: str) -> bytes:
    text = dot(mesh.segments, peer_views(mesh), mesh.subnet)
    program = shutil.which("dot")
    assert program
    done = subprocess.run([program, f"-T{form}"], input=text.encode(), capture_output=True, check=True)
    return done.stdout


def test_vertex_of_a_peer_named_as_a_node_is_its_own() -> None:
    mesh = topology(cluster(node("n1", "x"), node("n2", "y"), peer("n1", "10.5.0.1/32")))
    views = peer_views(mesh)
    assert labels(mesh.segments, views)["n1"].splitlines()[0] == "location:x"
    assert labels(mesh.segments, views)["peer n1"] == "n1"
    assert list(edges(mesh.segments, views)) == [
        Edge("n1", "n2", False),
        Edge("n1", "peer n1", True),
        Edge("n2", "peer n1", True),
    ]
    vertices = [line for line in drawn(mesh, "plain").splitlines() if line.startswith(b"node ")]
    assert len(vertices) == 3


ODD = [
    ("a\x00b", "a\\x00b"),
    ("a\x1b[31mb", "a\\x1b[31mb"),
    ("a\x7f\x9bb", "a\\x7f\\x9bb"),
    ("a\u202eb", "a\\u202eb"),
    ("a\u2066b\u2028c", "a\\u2066b\\u2028c"),
    ("a\nb", "a\\nb"),
    ("a\ud800b", "a\\ud800b"),
    ("a\ufffeb", "a\\ufffeb"),
    ('<b>"a"</b>', '<b>"a"</b>'),
    ("&#27;&lt;&amp;", "&#27;&lt;&amp;"),
    ("\\N\\G", "\\N\\G"),
    ("é漢", "é漢"),
]


@pytest.mark.parametrize(("location", "shown"), ODD)
def test_location_with_any_characters_is_drawn_and_its_controls_are_escapes(
    location: str, shown: str
) -> None:
    mesh = topology(cluster(node("n1", location), node("n2", "y")))
    texts = [element.text for element in ET.fromstring(drawn(mesh, "svg")).iter() if element.text]
    assert f"location:{shown}" in texts
    for form in ("png", "json", "dot"):
        assert drawn(mesh, form)


def test_location_that_is_very_long_is_shortened_in_its_middle() -> None:
    mesh = topology(cluster(node("n1", "a" * 100_000 + "z"), node("n2", "y")))
    line = labels(mesh.segments, ())["n1"].splitlines()[0]
    assert len(line) == LINE_MAX
    assert line.startswith("location:aaa") and line.endswith("az")
    assert len(dot(mesh.segments, (), mesh.subnet)) < 10 * LINE_MAX
