"""``kg plan``: what would be planned, from the output of ``kubectl get -o json``, with no cluster.

No privilege, no network, nothing imported that a plan does not need. Exit status: 0; 1 where nothing
can be planned for the node that ``--hostname`` names; 2 for a bad flag, or input that cannot be used.
With ``--diff`` a plan is compared with the kernel, by kilo.cli.diff.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from kilo import graph
from kilo.cli.help import of_command
from kilo.cli.objectfile import Objects, read_objects
from kilo.config import FLAGS, Config, Flag, FlagError, load, settings_of, split, value_of
from kilo.errors import KiloError, ProtocolError
from kilo.mesh.claims import conflicts
from kilo.mesh.describe import PRIVATE, TUNNEL, describe, peer_views
from kilo.mesh.firewall import SETS, firewall
from kilo.mesh.routes import routes
from kilo.mesh.topology import CannotPlan, Topology, build
from kilo.mesh.wireguard import conf
from kilo.model.keys import canonical_key
from kilo.model.net import canonical_network
from kilo.model.node import Node, Peer
from kilo.model.plan import Route
from kilo.model.settings import Settings
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

NAMES_TOLD = 30
NOT_READY = "local node is not ready"
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


def main(argv: Sequence[str]) -> int:
    """Run ``kg plan`` with these arguments; its exit status."""
    if any(word in ("-h", "-help", "--help") for word in argv):
        print(of_command("plan", OWN_FLAGS))
        return 0
    try:
        request = _request(argv)
        cluster = _read(request) if request.nodes else None
    except KiloError as e:
        tell(str(e))
        return 2
    if request.diff:
        status: int = import_module("kilo.cli.diff").main(request, cluster)
        return status
    return _plan(cluster or Cluster(), request)


def tell(text: str) -> None:
    print(f"kg plan: {text}", file=sys.stderr)


def _request(argv: Sequence[str]) -> Request:
    """Raises FlagError, or ProtocolError for the key."""
    texts, words = split(argv, {flag.name: flag for flag in (*FLAGS, *OWN_FLAGS)})
    if words:
        raise FlagError(f"{words[0]!r} is not expected here; kg plan --help says what is")
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
        config=load(texts),
        diff=diff,
        key_file=own.get("private-key", ""),
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


def _read(request: Request) -> Cluster:
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


def _plan(cluster: Cluster, request: Request) -> int:
    settings = settings_of(request.config)
    expected: dict[str, Any] = {
        "ready_nodes": sorted(cluster.nodes),
        "ready_peers": sorted(cluster.peers),
        "rejected_peers": sorted(cluster.rejected_peers),
    }
    topology: Topology | None = None
    if settings.hostname not in cluster.nodes:
        expected["error"] = NOT_READY
        tell(_why_not(cluster, request))
    else:
        try:
            topology = build(cluster.nodes.values(), cluster.peers.values(), settings)
        except CannotPlan as e:
            expected["error"] = str(e)
            tell(str(e))
    if topology is not None:
        for conflict in conflicts(topology, settings).values():
            tell(conflict)
    if request.format == "json":
        if topology is not None:
            interface, key = request.config.interface, request.private_key
            expected["topology"] = describe(topology, settings, interface, key, request.connect)
        print(json.dumps(expected, indent=2, sort_keys=True))
    elif topology is not None:
        print(_PRINTERS[request.format](topology, settings, request), end="")
    return 0 if topology is not None else 1


def _why_not(cluster: Cluster, request: Request) -> str:
    """Why there is no plan for the local node, and what to do about it."""
    name = request.config.hostname
    reason = cluster.left_out.get(name)
    if reason is None:
        names = cluster.names()
        if not names:
            return f"no node is named {name!r}: {request.nodes} holds none"
        more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
        return f"no node is named {name!r}; --hostname takes one of: {', '.join(names[:NAMES_TOLD])}{more}"
    text = f"nothing can be planned for node {name}: {reason.place}: {reason.reason}"
    if reason.field == "last-seen" and (at := cluster.last_seen.get(name)):
        text += f"; --at {at} plans for when it last checked in"
    return text


def _print_wireguard(topology: Topology, settings: Settings, request: Request) -> str:
    text = conf(topology, settings.port, request.private_key)
    if request.private_key:
        return text
    return text.replace("[Interface]\n", "[Interface]\n# PrivateKey: give --private-key FILE\n", 1)


def _print_routes(topology: Topology, settings: Settings, request: Request) -> str:
    """As ``ip route`` and ``ip rule`` write them."""
    devices = {"wireguard": request.config.interface, "private": PRIVATE, "tunnel": TUNNEL}
    found, rules = routes(topology, settings)
    distinct: dict[str, Route] = {}
    for route in found:
        distinct.setdefault(route.key, route)
    lines = ["# ip route"]
    for route in distinct.values():
        via = f" via {route.via}" if route.via else ""
        table = f" table {route.table}" if route.table else ""
        src = f" src {route.src}" if route.src else ""
        onlink = " onlink" if route.onlink else ""
        lines.append(f"{route.dst}{via} dev {devices[route.device]}{table}{src}{onlink}")
    lines.append("# ip rule")
    for rule in rules:
        to = f" to {rule.dst}" if rule.dst else ""
        iif = f" iif {devices[rule.iif]}" if rule.iif else ""
        lines.append(f"from {rule.src or 'all'}{to}{iif} lookup {rule.table}")
    return "\n".join(lines) + "\n"


def _print_firewall(topology: Topology, settings: Settings, request: Request) -> str:
    wall = firewall(topology, settings)
    lines = []
    for name in SETS:
        lines.append(f"{name}:")
        lines += [f"  {network}" for network in sorted(wall.sets[name])]
    guard = "accepted from ipip_accept_from alone" if wall.ipip_guard else "not looked at"
    return "\n".join([*lines, f"IPIP packets: {guard}", ""])


def _print_dot(topology: Topology, settings: Settings, request: Request) -> str:
    return graph.dot(topology.segments, peer_views(topology), topology.subnet)


_PRINTERS: dict[str, Callable[[Topology, Settings, Request], str]] = {
    "wireguard": _print_wireguard,
    "routes": _print_routes,
    "firewall": _print_firewall,
    "dot": _print_dot,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
