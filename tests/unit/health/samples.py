"""A small mesh as the workers would report it, for the tests of this folder."""

from __future__ import annotations

import base64
from typing import Any

from kilo.health.gather import Snapshot
from kilo.model.host import HostFacts, WireGuardPeerState, WorkerState
from kilo.model.node import Endpoint, Problem
from kilo.model.readiness import WorkerView
from kilo.model.topology import PeerView, Segment, TopologyHead, TopologyItem
from kilo.model.workers import WORKERS

NOW = 1_700_000_000.0


def key(number: int) -> str:
    return base64.b64encode(number.to_bytes(32, "big")).decode()


def segment(name: str, number: int, *others: str) -> Segment:
    """A segment led by ``name``."""
    names = (name, *others)
    return Segment(
        location=f"location:{name}",
        hostnames=names,
        cidrs=tuple(f"10.2.{number}{i}.0/24" for i in range(len(names))),
        private_ips=tuple(f"10.0.{number}.{i + 1}/24" for i in range(len(names))),
        leader=0,
        key=key(number),
        wireguard_ip=f"10.4.0.{number}",
        endpoint=Endpoint(f"203.0.113.{number}", 51820),
        allowed_ips=(f"10.2.{number}0.0/24", f"10.4.0.{number}/32"),
    )


def topology() -> dict[str, TopologyItem]:
    """Two segments, of one node and of two, and a peer."""
    return {
        "segment/location:a": segment("a", 1),
        "segment/location:b": segment("b", 2, "b2"),
        "peer/laptop": PeerView("laptop", key(9), ("10.5.0.1/32",)),
        "head": TopologyHead("a", "location:a", True, "10.4.0.0/16"),
    }


def wireguard() -> dict[str, WireGuardPeerState]:
    return {
        key(2): WireGuardPeerState(key(2), "203.0.113.2", 51820, int(NOW) - 30, 2048, 4096),
        key(9): WireGuardPeerState(key(9)),
    }


def state(worker: str, **values: Any) -> WorkerState:
    return WorkerState(
        **{
            "worker": worker,
            "pid": 4242,
            "started": NOW - 3700,
            "phase": "ready",
            "beat": 1,
            "cpu_seconds": 1.5,
            "resident_bytes": 20 << 20,
            "open_fds": 12,
            **values,
        }
    )


def netctl(**gauges: float) -> WorkerState:
    """netctl, with a plan applied."""
    return state("netctl", gauges={"applied_generation": 3.0, **gauges})


def views(**special: WorkerView) -> dict[str, WorkerView]:
    """All workers ready and just heard, but for ``special``."""
    well = {name: WorkerView(name, state(name), 0.4) for name in WORKERS}
    return well | {"netctl": WorkerView("netctl", netctl(), 0.4)} | special


def snapshot(**values: Any) -> Snapshot:
    """A node of a mesh where all is well, but for ``values``."""
    well: dict[str, Any] = {
        "at": NOW,
        "hostname": "a",
        "cni": True,
        "workers": views(),
        "topology": topology(),
        "topology_version": 1,
        "problems": {},
        "wireguard": wireguard(),
        "host": HostFacts(key(1), wireguard="userspace"),
    }
    return Snapshot(**well | values)


def problem(name: str, reason: str = "is not set", kind: str = "node", field: str = "key") -> Problem:
    return Problem(kind, name, field, reason, int(NOW) - 7300)
