from __future__ import annotations

import shutil
import subprocess

from kilo.graph import Edge, dot, edges, labels
from kilo.mesh.describe import peer_views
from tests.unit.mesh.states import STATES, cluster, node, topology

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
