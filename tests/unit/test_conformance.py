"""What squat/kilo's Go agent plans, case by case, and what this planner makes of the same input."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from kilo.errors import ProtocolError
from kilo.mesh.describe import describe
from kilo.mesh.topology import build
from kilo.model.node import Node, Peer
from kilo.model.settings import Settings
from kilo.watcher.objects import decode_node, decode_peer
from kilo.watcher.translate import is_alive, node_from, not_ready_reason, peer_from, peer_not_ready_reason

COPY = Path(__file__).parents[1] / "data" / "topology.jsonl.gz"
ORIGINAL = Path(__file__).parents[3] / "shared" / "conformance" / "topology.jsonl"
TEXT = gzip.decompress(COPY.read_bytes())
CASES: list[dict[str, Any]] = [json.loads(line) for line in TEXT.splitlines()]


def planned(case: dict[str, Any]) -> dict[str, Any]:
    """The ``expected`` of a case, as this planner has it."""
    config = case["config"]
    nodes = ready_nodes(case)
    peers, rejected = ready_peers(case)
    result: dict[str, Any] = {
        "ready_nodes": sorted(node.name for node in nodes),
        "ready_peers": sorted(peer.name for peer in peers),
        "rejected_peers": sorted(rejected),
    }
    if config["hostname"] not in result["ready_nodes"]:
        return result | {"error": "local node is not ready"}
    names = ("hostname", "mesh_granularity", "subnet", "port", "encapsulate", "compatibility", "local", "cni")
    settings = Settings(
        **{name: config[name] for name in names},
        iptables_forward_rules=config["iptables_forward_rules"],
        service_cidrs=tuple(config["service_cidrs"]),
    )
    topology = build(nodes, peers, settings)
    connect = config["connect_allowed_ips"]
    described = describe(topology, settings, private_key=config["private_key"], connect=connect)
    return result | {"topology": described}


def ready_nodes(case: dict[str, Any]) -> list[Node]:
    label = case["config"]["topology_label"]
    read = [node_from(decode_node(json.dumps(obj).encode()), label) for obj in case["nodes"]]
    return [r.node for r in read if not not_ready_reason(r.node, is_alive(r.last_seen, case["now"]))]


def ready_peers(case: dict[str, Any]) -> tuple[list[Peer], list[str]]:
    peers, rejected = [], []
    for obj in case["peers"]:
        try:
            peer = peer_from(decode_peer(json.dumps(obj).encode())).peer
        except ProtocolError:
            peer = None
        if peer is None:
            rejected.append(obj["metadata"]["name"])
        elif not peer_not_ready_reason(peer):
            peers.append(peer)
    return peers, rejected


def without_order(expected: dict[str, Any]) -> dict[str, Any]:
    """A case's ``expected`` with routes and rules sorted: their order does not matter."""
    expected = json.loads(json.dumps(expected))
    topology = expected.get("topology")
    if topology:
        lists = [topology["routes"], topology["rules"], *topology["peer_routes"].values()]
        for items in lists:
            items.sort(key=lambda item: json.dumps(item, sort_keys=True))
    return expected


def test_there_are_three_hundred_cases() -> None:
    assert len(CASES) == 300
    assert sum("topology" in case["expected"] for case in CASES) == 270


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_the_plan_is_the_go_agents(case: dict[str, Any]) -> None:
    assert without_order(planned(case)) == without_order(case["expected"])


def test_the_copy_is_whole() -> None:
    """Beside a checkout of the whole project lies the original; a clone has the copy alone."""
    original = ORIGINAL.read_bytes() if ORIGINAL.exists() else TEXT
    assert original == TEXT
