"""What the kernel says to planned routes: a namespace with the links of a host, and every route set in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from kilo.mesh.planner import Planned
from kilo.model.host import HostFacts, Link
from kilo.model.node import Node, Peer
from kilo.model.plan import Interface, Route
from tests.unit.mesh.states import STATES, cluster, host_of, node, peer, planned

NAME = f"kgt-{os.getpid()}-mesh"
DEVICES = {"wireguard": "kilo0", "private": "eth0", "tunnel": "tunl0"}


def ip(command: str) -> str:
    done = subprocess.run(["ip", "-n", NAME, *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture
def namespace() -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    try:
        ip("link add eth0 type bridge")
        for name in ("kilo0", "tunl0"):
            ip(f"tuntap add {name} mode tun")
        for name in ("eth0", "kilo0", "tunl0"):
            ip(f"link set {name} up")
        yield
    finally:
        subprocess.run(["ip", "netns", "del", NAME], check=True)


def apply(result: Planned, facts: HostFacts) -> None:
    """Give the links their addresses, then set every route; the kernel refuses none."""
    for link in facts.links:
        for address in link.addresses:
            ip(f"addr add {address} dev {link.name}")
    interface = result.items["interface"]
    assert isinstance(interface, Interface)
    if interface.address:
        ip(f"addr add {interface.address} dev kilo0")
    for route in result.items.values():
        if isinstance(route, Route):
            ip(f"route add {_as_words(route)}")


def _as_words(route: Route) -> str:
    words = f"{route.dst} dev {DEVICES[route.device]} proto 171"
    words += f" via {route.via}" if route.via else ""
    words += f" src {route.src}" if route.src else ""
    words += f" table {route.table}" if route.table else ""
    return words + (" onlink" if route.onlink else "")


def plan_and_apply(state: tuple[list[Node], list[Peer]], hostname: str, **flags: Any) -> Planned:
    """On a host that has the addresses of the node, but not one that is forced."""
    local = next(n for n in state[0] if n.name == hostname)
    private = f"10.0.0.{hostname[1:]}/24"
    facts = host_of(msgspec.structs.replace(local, internal_ip=private))
    result = planned(state, hostname, host=facts, **flags)
    apply(result, facts)
    return result


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("hostname", ["n1", "n2"])
@pytest.mark.parametrize("encapsulate", ["never", "always"])
def test_an_internal_ip_that_the_host_does_not_have_is_no_source(hostname: str, encapsulate: str) -> None:
    forced = [
        msgspec.structs.replace(n, internal_ip=f"10.7.0.{n.name[1:]}/24", forced_internal_ip=True)
        for n in STATES["two locations"][0]
    ]
    result = plan_and_apply((forced, [peer("p", "10.5.0.1/32")]), hostname, encapsulate=encapsulate)
    told = (
        f"the annotation kilo.squat.ai/force-internal-ip says 10.7.0.{hostname[1:]}, which no link of this"
        " host has: the kernel chooses the source address of routes"
    )
    assert result.conflicts == {"force-internal-ip": told}
    assert "dev" in ip("route get 10.2.3.7")


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("hostname", ["n1", "n2", "n3"])
def test_the_broadcast_address_of_the_subnet_is_no_gateway(hostname: str) -> None:
    state = cluster(node("n1"), node("n2"), node("n3"), peer("p", "10.5.0.1/32"))
    result = plan_and_apply(state, hostname, mesh_granularity="full", subnet="10.4.0.0/30")
    told = (
        "node:n3 has 10.4.0.3, the broadcast address of the subnet 10.4.0.0/30:"
        " nobody reaches it there; a wider --subnet is needed"
    )
    assert result.conflicts == {"subnet/broadcast": told}
    for other in {"n1", "n2", "n3"} - {hostname}:
        assert " dev kilo0 " in ip(f"route get 10.2.{other[1:]}.7")


@pytest.mark.parametrize("subnet", ["10.4.0.0/31", "fd04::/127"])
def test_the_last_address_of_two_is_no_broadcast_address(subnet: str) -> None:
    assert planned(cluster(node("n1")), subnet=subnet).conflicts == {}


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("network", ["10.0.0.0/24", "10.4.0.0/16", "10.2.1.0/24", "10.0.0.0/16"])
def test_no_route_is_in_the_way_of_one_of_the_kernels_own(network: str) -> None:
    """The host is connected to each: set where the kernel has one of its own, a route is refused for ever."""
    more = (
        Link("eth1", 3, 1500, addresses=("10.0.5.1/16",)),
        Link("kube-bridge", 4, 1500, addresses=("10.2.1.1/24",)),
    )
    for link in more:
        ip(f"link add {link.name} up type bridge")
    state = cluster(*STATES["two locations"][0], peer("p", network))
    facts = host_of(state[0][0])
    ignored = ("kilo0", "tunl0", "kube-bridge")
    facts = msgspec.structs.replace(facts, links=(*facts.links, *more), ignored_links=ignored)
    result = planned(state, "n1", host=facts, encapsulate="never")
    apply(result, facts)
    assert "proto kernel scope link" in ip(f"route show exact {network}")


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("hostname", ["n1", "n2"])
@pytest.mark.parametrize("encapsulate", ["never", "always"])
@pytest.mark.parametrize("other", ["10.0.0.{}/24", "10.0.0.{}/32", "10.4.0.2/32", "10.0.0.{}/30"])
def test_no_gateway_is_an_address_of_this_host(hostname: str, encapsulate: str, other: str) -> None:
    """A link here has the address of the neighbour, or the WireGuard address of another location; and the
    third neighbour's is a broadcast address here."""
    state = cluster(
        *STATES["two locations"][0], node("n9", "x", internal_ip="10.0.0.3/24"), peer("p", "10.5.0.1/32")
    )
    ip("link add eth1 up type bridge")
    more = Link("eth1", 3, 1500, addresses=(other.format(3 - int(hostname[1:])),))
    facts = host_of(next(n for n in state[0] if n.name == hostname))
    facts = msgspec.structs.replace(facts, links=(*facts.links, more))
    result = planned(state, hostname, host=facts, encapsulate=encapsulate)
    apply(result, facts)
    assert result.conflicts
