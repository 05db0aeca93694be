"""The topology as a graph in the DOT language. Pure; used by health and by ``kg plan``.

What is linked with what, and what each vertex is called, is as squat/kilo draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kilo.model.topology import PeerView, Segment


class Edge(NamedTuple):
    """A link; ``dashed`` if one end is a Peer."""

    start: str
    end: str
    dashed: bool


def edges(segments: Sequence[Segment], peers: Sequence[PeerView]) -> Iterator[Edge]:
    """Every leader to its segment, every leader to every other, and every Peer to every leader."""
    leaders = [segment.hostnames[segment.leader] for segment in segments]
    for segment, leader in zip(segments, leaders, strict=True):
        for i, name in enumerate(segment.hostnames):
            if i != segment.leader:
                yield Edge(leader, name, False)
    for i, leader in enumerate(leaders):
        for other in leaders[i + 1 :]:
            yield Edge(leader, other, False)
    for leader in leaders:
        for peer in peers:
            yield Edge(leader, peer.name, True)


def labels(segments: Sequence[Segment], peers: Sequence[PeerView]) -> dict[str, str]:
    """The lines of text of each vertex, by name."""
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
            found[name] = "\n".join(lines)
    for peer in peers:
        found[peer.name] = f"{peer.name}\n{peer.endpoint}" if peer.endpoint else peer.name
    return found


def dot(segments: Sequence[Segment], peers: Sequence[PeerView], subnet: str) -> str:
    """The whole graph as DOT, with a box around each segment; ``subnet`` is its title."""
    texts = labels(segments, peers)
    lines = [
        "digraph kilo {",
        f"    label={_quoted(subnet)};",
        "    labelloc=t;",
        "    outputorder=nodesfirst;",
        "    overlap=false;",
        "    node [shape=ellipse];",
    ]
    for segment in segments:
        lines += _cluster(f"cluster_{segment.location}", segment.location)
        for i, name in enumerate(segment.hostnames):
            rank = ", rank=1" if i == segment.leader else ""
            lines.append(f"        {_quoted(name)} [label={_quoted(texts[name])}{rank}];")
        lines.append("    }")
    if peers:
        lines += _cluster("cluster_peers", "peers")
        lines += [f"        {_quoted(p.name)} [label={_quoted(texts[p.name])}];" for p in peers]
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
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
