"""What ``kg plan`` is asked for, and the cluster that it is asked about, as files have it.

No privilege, no network. What is left out is told on standard error.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kilo.cli.objectfile import Objects, read_objects
from kilo.config import FLAGS, Config, Flag, FlagError, given, load, split, value_of
from kilo.errors import ProtocolError
from kilo.model.keys import canonical_key
from kilo.model.net import canonical_network
from kilo.model.node import Node, Peer
from kilo.model.text import printable
from kilo.watcher.objects import NODE, PEER, PeerObject, decode_node, decode_peer
from kilo.watcher.translate import (
    FieldProblem,
    NodeReading,
    PeerReading,
    is_alive,
    node_from,
    not_ready_reason,
    peer_from,
    peer_not_ready_reason,
)

FORMATS = ("json", "wireguard", "routes", "firewall", "dot")
DIFF_FORMATS = ("text", "json")


def _networks(text: str) -> tuple[str, ...]:
    try:
        return tuple(canonical_network(part) for part in text.split(",") if part)
    except ProtocolError as e:
        raise ValueError from e


def _format(text: str) -> str:
    if text not in (*FORMATS, *DIFF_FORMATS):
        raise ValueError
    return text


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


_FILE = "a file, or - for standard input"
OWN_FLAGS = (
    Flag("nodes", str, _FILE, "What kubectl get nodes -o json printed."),
    Flag("peers", str, _FILE, "What kubectl get peers -o json printed."),
    Flag(
        "at",
        int,
        "Unix seconds",
        "The time to plan for, by which nodes count as alive (default: when FILE was written).",
    ),
    Flag(
        "private-key",
        str,
        "a file",
        "The node's WireGuard key, to be printed or compared.",
    ),
    Flag("o", _format, f"{', '.join(FORMATS)}; with --diff {', '.join(DIFF_FORMATS)}", "What to print."),
    Flag(
        "diff",
        _switch,
        "true or false",
        "Print what would be changed in this host's kernel, and change nothing.",
        boolean=True,
    ),
    Flag(
        "connect-allowed-ips",
        _networks,
        "CIDRs such as 10.0.0.0/8, comma separated",
        "More destinations for the routes of Peers.",
        repeatable=True,
    ),
)


@dataclass
class Cluster:
    """Who takes part, who does not and why, and which Peers fail validation."""

    nodes: dict[str, Node] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    left_out: dict[str, FieldProblem] = field(default_factory=dict)
    rejected_peers: set[str] = field(default_factory=set)
    last_seen: dict[str, int] = field(default_factory=dict)
    given: dict[str, Node] = field(default_factory=dict)
    """All nodes, whether they take part or not."""

    def names(self) -> list[str]:
        """Of all nodes, whether they take part or not."""
        return sorted(self.nodes.keys() | self.left_out.keys())


@dataclass(frozen=True)
class Request:
    """What is to be printed, beside what the agent's own flags say.

    ``nodes`` may be "" with ``diff``: then the agent's plan is meant. ``key_file``: of ``private_key``.
    ``given``: the fields of ``config`` that are no defaults.
    """

    nodes: str
    peers: str
    at: int
    private_key: str
    format: str
    connect: tuple[str, ...]
    config: Config
    diff: bool = False
    key_file: str = ""
    given: frozenset[str] = frozenset()


def tell(text: str) -> None:
    print(f"kg plan: {printable(text)}", file=sys.stderr)


def request_of(argv: Sequence[str]) -> Request:
    """Raises FlagError, or ProtocolError for the key."""
    texts, words = split(argv, {flag.name: flag for flag in (*FLAGS, *OWN_FLAGS)})
    if words:
        raise FlagError(f"{words[0]!r} is not expected here; kg plan --help says what is")
    config = load(texts)
    own = {flag.name: value_of(flag, texts[flag.name]) for flag in OWN_FLAGS if flag.name in texts}
    nodes, peers = own.get("nodes", ""), own.get("peers", "")
    diff = own.get("diff", False)
    if not nodes and not diff:
        raise FlagError("--nodes FILE is missing: what kubectl get nodes -o json printed")
    if peers and not nodes:
        raise FlagError("--peers needs --nodes")
    formats, chosen = DIFF_FORMATS if diff else FORMATS, own.get("o", "text" if diff else "json")
    if chosen not in formats:
        raise FlagError(f"-o: {chosen!r} is not allowed {'with' if diff else 'without'} --diff")
    if nodes == peers == "-":
        raise FlagError("--nodes and --peers cannot both be standard input")
    return Request(
        nodes=nodes,
        peers=peers,
        at=own["at"] if "at" in own else _written_at(nodes),
        private_key=_private_key(own["private-key"]) if "private-key" in own else "",
        format=chosen,
        connect=own.get("connect-allowed-ips", ()),
        config=config,
        diff=diff,
        key_file=own.get("private-key", ""),
        given=given(texts),
    )


def _written_at(path: str) -> int:
    """When the file was written, which is when the cluster was as it says; now for standard input."""
    try:
        return int(os.stat(path).st_mtime) if path not in ("", "-") else int(time.time())
    except OSError:
        return int(time.time())


def _private_key(path: str) -> str:
    """The key in a file. Raises ProtocolError, which never says what is in it."""
    try:
        with open(path, encoding="ascii") as f:
            return canonical_key(f.read(4096).strip())
    except OSError as e:
        raise ProtocolError(f"--private-key {path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise ProtocolError(f"--private-key {path} is not a WireGuard key: not base64") from None
    except ProtocolError as e:
        raise ProtocolError(f"--private-key {path} is not a WireGuard key: {e}") from None


def read(request: Request) -> Cluster:
    """Both files; what is left out is told. Raises ProtocolError if one cannot be used."""
    cluster = Cluster()
    nodes = read_objects(request.nodes, "--nodes", NODE, decode_node)
    peers: Objects[PeerObject] = Objects()
    if request.peers:
        peers = read_objects(request.peers, "--peers", PEER, decode_peer)
    for bad in (*nodes.refused, *peers.refused):
        tell(f"{bad}; it is left out")
    cluster.rejected_peers.update(bad.name for bad in peers.refused if bad.name)
    for node in nodes.objects:
        _take_node(node_from(node, request.config.topology_label), request.at, cluster)
    for peer in peers.objects:
        _take_peer(peer_from(peer), cluster)
    return cluster


def _take_node(read: NodeReading, at: int, cluster: Cluster) -> None:
    name = read.node.name
    if name in cluster.nodes or name in cluster.left_out:
        tell(f"node {name} is there twice; the first counts")
        return
    cluster.last_seen[name] = read.last_seen
    cluster.given[name] = read.node
    reason = not_ready_reason(read.node, is_alive(read.last_seen, at), read.problems)
    for problem in read.problems:
        if problem != reason:
            tell(f"node {name}: {problem.place}: {problem.reason}; this is passed over")
    if reason is None:
        cluster.nodes[name] = read.node
        return
    if reason.field == "last-seen" and read.last_seen:
        ago = f"{at - read.last_seen} s before the time planned for"
        reason = FieldProblem("last-seen", f"the node checked in {ago} (see --at)")
    cluster.left_out[name] = reason
    tell(f"node {name} is left out: {reason.place}: {reason.reason}")


def _take_peer(read: PeerReading, cluster: Cluster) -> None:
    if read.name in cluster.peers or read.name in cluster.rejected_peers:
        tell(f"Peer {read.name} is there twice; the first counts")
        return
    for problem in read.problems:
        what = "it is rejected" if read.peer is None else "this is passed over"
        tell(f"Peer {read.name}: {problem.field}: {problem.reason}; {what}")
    if read.peer is None:
        cluster.rejected_peers.add(read.name)
    elif reason := peer_not_ready_reason(read.peer):
        tell(f"Peer {read.name} is left out: {reason.field} {reason.reason}")
    else:
        cluster.peers[read.name] = read.peer
