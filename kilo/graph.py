"""The topology as a graph in the DOT language. Pure; used by health and by ``kg plan``.

What is linked with what, and what each vertex is called, is as squat/kilo draws it; but where names
collide, or have characters that graphviz or a browser would refuse, each vertex keeps a name of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kilo.model.text import printable
from kilo.model.topology import PeerView, Segment

LINE_MAX = 300
"""Characters of a name or a line in a vertex; Kubernetes allows a node's or Peer's name 253."""
_ENTITY = re.compile(r"&(?=#?\w+;)")
"""The beginning of what graphviz would print as another character, such as ``&#27;``."""


class Edge(NamedTuple):
    """A link between two vertices, by name; ``dashed`` if one end is a Peer."""

    start: str
    end: str
    dashed: bool


class Vertices(NamedTuple):
    """The names of the vertices, by the name of the node and by that of the Peer."""

    nodes: dict[str, str]
    peers: dict[str, str]


def vertices(segments: Sequence[Segment], peers: Sequence[PeerView]) -> Vertices:
    """No two vertices have one name, also where a Peer is called as a node is."""
    taken = set[str]()

    def name(text: str, otherwise: str) -> str:
        found = text
        while found in taken:
            found = otherwise = f"{otherwise} {text}"
        taken.add(found)
        return found

    shown = {host: printable(host, LINE_MAX) for segment in segments for host in segment.hostnames}
    of_nodes = {host: name(text, "node") for host, text in shown.items()}
    return Vertices(of_nodes, {peer.name: name(printable(peer.name, LINE_MAX), "peer") for peer in peers})


def edges(segments: Sequence[Segment], peers: Sequence[PeerView]) -> Iterator[Edge]:
    """Every leader to its segment, every leader to every other, and every Peer to every leader."""
    nodes, outside = vertices(segments, peers)
    leaders = [nodes[segment.hostnames[segment.leader]] for segment in segments]
    for segment, leader in zip(segments, leaders, strict=True):
        for i, name in enumerate(segment.hostnames):
            if i != segment.leader:
                yield Edge(leader, nodes[name], False)
    for i, leader in enumerate(leaders):
        for other in leaders[i + 1 :]:
            yield Edge(leader, other, False)
    for leader in leaders:
        for peer in peers:
            yield Edge(leader, outside[peer.name], True)


def labels(segments: Sequence[Segment], peers: Sequence[PeerView]) -> dict[str, str]:
    """The lines of text of each vertex, by its name."""
    nodes, outside = vertices(segments, peers)
    found = {}
    for segment in segments:
        for i, name in enumerate(segment.hostnames):
            lines = [segment.location, name, segment.cidrs[i]]
            if segment.private_ips:
                lines.append(segment.private_ips[i])
            if i == segment.leader:
                lines.append(segment.wireguard_ip)
                if segment.endpoint is not None:
                    lines.append(str(segment.endpoint))
            found[nodes[name]] = _lines(lines)
    for peer in peers:
        found[outside[peer.name]] = _lines([peer.name, str(peer.endpoint)] if peer.endpoint else [peer.name])
    return found


def _lines(lines: list[str]) -> str:
    return "\n".join([printable(line, LINE_MAX) for line in lines])


def dot(segments: Sequence[Segment], peers: Sequence[PeerView], subnet: str) -> str:
    """The whole graph as DOT, with a box around each segment; ``subnet`` is its title."""
    texts = labels(segments, peers)
    nodes, outside = vertices(segments, peers)
    lines = [
        "digraph kilo {",
        f"    label={_quoted(subnet)};",
        "    labelloc=t;",
        "    outputorder=nodesfirst;",
        "    overlap=false;",
        "    node [shape=ellipse];",
    ]
    for number, segment in enumerate(segments):
        shown = printable(segment.location, LINE_MAX)
        # What is shown alike of two locations is still two clusters.
        apart = f" {number}" if shown != segment.location else ""
        lines += _cluster(f"cluster_{shown}{apart}", shown)
        for i, host in enumerate(segment.hostnames):
            rank = ", rank=1" if i == segment.leader else ""
            name = nodes[host]
            lines.append(f"        {_quoted(name)} [label={_quoted(texts[name])}{rank}];")
        lines.append("    }")
    if peers:
        lines += _cluster("cluster_peers", "peers")
        names = [outside[peer.name] for peer in peers]
        lines += [f"        {_quoted(name)} [label={_quoted(texts[name])}];" for name in names]
        lines.append("    }")
    for edge in edges(segments, peers):
        style = ", style=dashed" if edge.dashed else ""
        lines.append(f"    {_quoted(edge.start)} -> {_quoted(edge.end)} [dir=both{style}];")
    return "\n".join([*lines, "}", ""])


def _cluster(name: str, label: str) -> list[str]:
    return [
        f"    subgraph {_quoted(name)} {{",
        f"        label={_quoted(label)};",
        '        style="dashed,rounded";',
    ]


def _quoted(text: str) -> str:
    """A DOT string; line ends become centred ones."""
    escaped = _ENTITY.sub("&amp;", text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
