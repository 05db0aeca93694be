"""Simulated nodes: what their annotations say, and a process that checks in for all of them.

``python -m tests.lab.simulation --server URL --nodes N`` sends the check-ins, evenly spread, each
node's every 30 seconds as an agent does, until it is ended.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import time
from typing import Any

from tests.apiserver.admin import Admin, AdminError

CHECK_IN_SECONDS = 30.0
MOST_NODES = 60_000


class SimulatedNode:
    """Node ``number`` of a full mesh, from 0. Everything about it follows from its number."""

    def __init__(self, number: int) -> None:
        assert 0 <= number < MOST_NODES
        self.number = number
        self.name = f"sim-{number:05d}"
        high, low = divmod(number, 250)
        self.key = base64.b64encode(hashlib.sha256(self.name.encode()).digest()).decode()
        self.pod_cidr = f"10.{128 + high // 4}.{(high % 4) * 64 + low // 4}.{low % 4 * 64}/26"
        self.internal_ip = f"172.{20 + high // 250}.{high % 250}.{low + 1}"
        self.wireguard_ip = f"10.4.{high + 1}.{low + 1}"
        self.endpoint_ip = f"198.51.100.{low + 1}"

    def endpoint(self, change: int = 0) -> str:
        """Where it receives packets, after that many changes."""
        return f"{self.endpoint_ip}:{51820 + self.number // 250 + 1000 * change}"

    @property
    def networks(self) -> tuple[str, str]:
        """What every other node has a route to."""
        return self.pod_cidr, f"{self.internal_ip}/32"

    def annotations(self) -> dict[str, str]:
        """What its agent would announce, without the prefix."""
        return {
            "endpoint": self.endpoint(),
            "granularity": "full",
            "internal-ip": f"{self.internal_ip}/24",
            "key": self.key,
            "last-seen": str(int(time.time())),
            "wireguard-ip": f"{self.wireguard_ip}/16",
        }

    def object_parts(self, size: int) -> dict[str, Any]:
        """Other fields of the Node object, about ``size`` bytes: a kubelet reports images and conditions."""
        image = {"names": [f"registry.example.org/{self.name}@sha256:" + 64 * "0"], "sizeBytes": 1 << 26}
        return {"status": {"images": [image] * (size // 150)}}


def check_in(server: str, count: int, period: float) -> None:
    """Check in for ``count`` nodes, each once every ``period`` seconds, evenly spread, for ever."""
    admin = Admin(server)
    started = time.monotonic()
    number = 0
    while True:
        delay = started + number * period / count - time.monotonic()
        if delay > 0:
            time.sleep(delay)
        try:
            admin.check_in(SimulatedNode(number % count).name)
        except (AdminError, OSError):
            time.sleep(0.1)
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Checks in for simulated nodes.")
    parser.add_argument("--server", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--period", type=float, default=CHECK_IN_SECONDS)
    options = parser.parse_args()
    check_in(options.server, options.nodes, options.period)


if __name__ == "__main__":
    main()
