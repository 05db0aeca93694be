"""The smallest mesh with both tunnels of the kernel's: two nodes in one location, one in another, a laptop.

``test_encapsulation.py`` is the same with more hosts, in every mode, and under faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.mesh import Mesh
from tests.vm.inside import places
from tests.vm.inside.capture import IPIP
from tests.vm.inside.places import LAPTOP, Laptop, private_ip
from tests.vm.inside.test_encapsulation import (
    Traffic,
    hosts_of,
    start,
    test_between_locations_nothing_is_in_the_clear,
    test_one_firewall_is_there_and_nothing_of_the_other,
    test_pods_nodes_and_an_outside_peer_all_reach_one_another,
    test_the_tunnel_device_rules_and_guard,
    traffic_of,
)

__all__ = [
    "test_between_locations_nothing_is_in_the_clear",
    "test_one_firewall_is_there_and_nothing_of_the_other",
    "test_pods_nodes_and_an_outside_peer_all_reach_one_another",
    "test_the_tunnel_device_rules_and_guard",
]
NAMES = ("ada", "cem", "dan")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def mesh(logs: Path) -> Iterator[Mesh]:
    """The hosts, with no agent yet."""
    with hosts_of([spec for spec in places.SPECS if spec.name in NAMES], logs) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def laptop(mesh: Mesh) -> Laptop:
    return Laptop(mesh)


@pytest.fixture(scope="module")
def mode(mesh: Mesh, laptop: Laptop) -> str:
    """All agents encapsulate, and what they do has settled."""
    start(mesh, laptop, "always")
    return "always"


@pytest.fixture(scope="module")
def traffic(mode: str, mesh: Mesh, laptop: Laptop) -> Traffic:
    return traffic_of(mesh, laptop)


def test_ipip_is_between_the_nodes_of_one_location_alone(traffic: Traffic, mesh: Mesh) -> None:
    north = {frozenset((private_ip(mesh, mesh["ada"]), private_ip(mesh, mesh["cem"])))}
    seen = {name: {p.between() for p in wire if p.protocol == IPIP} for name, wire in traffic.wires.items()}
    assert seen == {"berlin": north, "potsdam": north, "lisbon": set(), "home": set(), "internet": set()}


def test_agent_that_ends_leaves_no_way_to_the_laptop(traffic: Traffic, mesh: Mesh) -> None:
    """The last test of the module: one agent is gone after it."""
    dan = mesh["dan"]
    assert traffic.unanswered == []
    assert dan.agent.terminate(places.SECONDS) == 0
    assert LAPTOP not in dan.host.run("ip", "route")
    assert "KILO" not in dan.host.run("iptables-legacy-save")
