"""What ``kg plan --diff`` finds on a kernel with WireGuard and IPIP."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping

import pytest

from kilo.model.plan import PlanItem, Route, Rule, Tunnel
from kilo.netctl.diff import Rehearsal
from tests.integration.netctl.hosts import ip
from tests.integration.netctl.worker_box import Box
from tests.unit.netctl.plans import key, mesh
from tests.vm.inside.test_worker import ENCAPSULATION, SECONDS, box, own_tunnel, settled

pytestmark = pytest.mark.long

__all__ = ["box", "own_tunnel"]
PLAN: dict[str, PlanItem] = mesh(2) | {item.key: item for item in ENCAPSULATION}


def found(box: Box, plan: Mapping[str, PlanItem]) -> list[str]:
    rehearsal = Rehearsal(box.config(firewall="nftables"))
    try:
        told = rehearsal.run(plan)
    finally:
        rehearsal.close()
    assert told.notes == told.unknown == []
    return [" ".join(difference) for difference in told.differences]


def test_the_kernels_devices(box: Box) -> None:
    wg = box.host.interface
    first = found(box, PLAN)
    assert f"+ link {wg} type wireguard mtu 1420 up" in first
    assert "+ link tunl0 type ipip mtu 1480 up" in first
    with box.worker(firewall="nftables") as worker:
        box.plan(PLAN)
        settled(box, PLAN)
        box.applied()
        assert found(box, PLAN) == []
        assert worker.end(signal.SIGHUP) == 0
    assert ip("link show tunl0")
    subprocess.run(["wg", "set", wg, "peer", key(1), "remove"], check=True, timeout=SECONDS)
    subprocess.run(["wg", "set", wg, "listen-port", "51999"], check=True, timeout=SECONDS)
    ip("link set tunl0 mtu 1400")
    assert found(box, PLAN) == [
        "~ link tunl0: mtu 1400 -> 1480",
        f"~ wireguard {wg}: port 51999 -> 51820",
        f"+ peer {key(1)}: allowed IPs +10.32.1.1/32 +10.4.0.2/32 +10.64.1.0/24,"
        " endpoint none -> 198.51.100.2:51820",
    ]
    unused = {k: i for k, i in PLAN.items() if not isinstance(i, (Tunnel, Route, Rule))}
    assert "~ link tunl0: up -> down" in found(box, unused), "nobody else uses it"
