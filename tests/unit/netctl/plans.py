"""Plans for tests: what a leader of a full mesh of N other nodes is to have."""

from __future__ import annotations

import base64
import hashlib

from kilo.model.plan import Interface, PlanItem, PlannedPeer, Route, Summary


def key(n: int) -> str:
    """A public key for node ``n``."""
    return base64.b64encode(hashlib.sha256(b"node %d" % n).digest()).decode()


def interface(**changes: object) -> Interface:
    """The interface of a leader."""
    values: dict[str, object] = {
        "up": True,
        "mtu": 1420,
        "listen_port": 51820,
        "address": "10.4.0.1/16",
        "private_ip": "10.1.0.10/24",
        "subnet": "10.4.0.0/16",
    }
    return Interface(**{**values, **changes})  # type: ignore[arg-type]


def node(n: int) -> list[PlanItem]:
    """Peer and routes of another node, which has a location of its own."""
    wireguard_ip = f"10.4.{(n + 1) >> 8}.{(n + 1) & 255}"
    pods, private = f"10.{64 + (n >> 8)}.{n & 255}.0/24", f"10.{32 + (n >> 8)}.{n & 255}.1/32"
    return [
        PlannedPeer(key(n), (pods, private, f"{wireguard_ip}/32"), f"198.51.100.{n % 250 + 1}", 51820),
        Route(pods, "wireguard", wireguard_ip, "10.1.0.10", onlink=True),
        Route(private, "wireguard", wireguard_ip, "10.1.0.10", onlink=True),
    ]


def mesh(nodes: int, **changes: object) -> dict[str, PlanItem]:
    """The plan of a leader with ``nodes`` others, each in its own location."""
    items: list[PlanItem] = [interface(**changes), Summary(1, "here", True, nodes + 1, 0, nodes + 1)]
    for n in range(1, nodes + 1):
        items += node(n)
    return {item.key: item for item in items}
