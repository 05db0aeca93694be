"""TCP's maximum segment size on forwarded traffic: as packets show it, with both firewalls.

The host's link to the outside stands for the WireGuard interface: its MTU is less than that of both ends.
"""

from __future__ import annotations

import contextlib
import socket
import struct

import pytest

from kilo.model.plan import Tunnel
from kilo.netctl.firewall.choice import Kind
from tests.integration.netctl.firewall.hosts import (
    KNOWN,
    KNOWN6,
    PATIENT,
    POD,
    POD6,
    Agent,
    Hosts,
    Namespace,
    errors,
    policy,
)
from tests.integration.netctl.firewall.samples import OF_BOTH_FAMILIES as SAMPLE

MTU = 1400
UNCLAMPED = {4: 1460, 6: 1440}
CLAMPED = {4: MTU - 40, 6: MTU - 60}
SYN, ACK = 2, 16
MAXSEG = 2


@pytest.fixture
def wired(wired: Hosts) -> Hosts:
    wired.host.ip(f"link set outside mtu {MTU}")
    return wired


def option(segment: bytes) -> int:
    """The maximum segment size that a SYN tells, 0 without one."""
    end, at = (segment[12] >> 4) * 4, 20
    while at < end and segment[at]:
        if segment[at] == MAXSEG:
            return int.from_bytes(segment[at + 2 : at + 4])
        at += 1 if segment[at] == 1 else segment[at + 1]
    return 0


def syn_heard(listening: socket.socket, ports: tuple[int, int], flags: int) -> int:
    """The option of the segment with these ports and flags that comes next."""
    while True:
        packet = listening.recv(2000)
        segment = packet if listening.family == socket.AF_INET6 else packet[(packet[0] & 15) * 4 :]
        if struct.unpack_from("!HH", segment) == ports and segment[13] & (SYN | ACK) == flags:
            return option(segment)


def handshake(client: Namespace, source: str, server: Namespace, destination: str) -> tuple[int, int]:
    """What the server hears of the client, and the client of the server, as each connects."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET

    def raw() -> socket.socket:
        made = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
        made.settimeout(PATIENT)
        return made

    def serve() -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.bind((destination, 0))
        made.listen()
        return made

    def connect(port: int) -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(PATIENT)
        made.bind((source, 0))
        made.connect((destination, port))
        return made

    with contextlib.ExitStack() as stack:
        at_server, at_client = stack.enter_context(server.call(raw)), stack.enter_context(client.call(raw))
        there = stack.enter_context(server.call(serve)).getsockname()[1]
        here = stack.enter_context(client.call(lambda: connect(there))).getsockname()[1]
        return syn_heard(at_server, (here, there), SYN), syn_heard(at_client, (there, here), SYN | ACK)


def sizes(wired: Hosts) -> dict[str, tuple[int, int]]:
    """What is heard of connections from the pod and to the pod, with IPv4 and IPv6."""
    pod, outside = wired.pod, wired.outside
    return {
        "out 4": handshake(pod, POD, outside, KNOWN),
        "in 4": handshake(outside, KNOWN, pod, POD),
        "out 6": handshake(pod, POD6, outside, KNOWN6),
        "in 6": handshake(outside, KNOWN6, pod, POD6),
    }


def both(values: dict[int, int]) -> dict[str, tuple[int, int]]:
    return {f"{way} {v}": (values[v], values[v]) for v in (4, 6) for way in ("out", "in")}


def test_both_ends_of_a_forwarded_connection_hear_what_the_path_can_take(wired: Hosts, kind: Kind) -> None:
    agent = Agent(wired.host, kind=kind, interface="outside")
    assert sizes(wired) == both(UNCLAMPED)
    assert not errors(agent.plan(policy(), *SAMPLE))
    assert sizes(wired) == both(CLAMPED)
    assert agent.resync() == []
    assert not errors(agent.clean_up())
    assert sizes(wired) == both(UNCLAMPED)


def test_traffic_that_does_not_pass_our_devices_is_left_alone(wired: Hosts, kind: Kind) -> None:
    agent = Agent(wired.host, kind=kind, interface="kilo0")
    assert not errors(agent.plan(policy(), *SAMPLE))
    assert sizes(wired) == both(UNCLAMPED)


def test_an_option_that_asks_for_less_stays_as_it_is(wired: Hosts, kind: Kind) -> None:
    agent = Agent(wired.host, kind=kind, interface="outside")
    agent.plan(policy(), *SAMPLE)
    wired.pod.ip("link set eth0 mtu 1300")
    assert handshake(wired.pod, POD, wired.outside, KNOWN) == (1260, CLAMPED[4])


@pytest.mark.parametrize(
    ("tunnel", "name"),
    [
        (Tunnel("ipip", ""), "tunl0"),
        (Tunnel("flannel", ""), "flannel.1"),
        (Tunnel("cilium", ""), "cilium_tunl"),
        (Tunnel("cilium", ""), "tunl0"),
    ],
)
def test_the_tunnel_of_the_plan_too(wired: Hosts, kind: Kind, tunnel: Tunnel, name: str) -> None:
    wired.host.ip(f"link set outside name {name}")
    agent = Agent(wired.host, kind=kind)
    agent.plan(policy(), *SAMPLE)
    assert handshake(wired.pod, POD, wired.outside, KNOWN) == (UNCLAMPED[4],) * 2
    outcomes = agent.plan(tunnel)
    assert outcomes and not any(outcome.error or outcome.repair for outcome in outcomes)
    assert handshake(wired.pod, POD, wired.outside, KNOWN) == (CLAMPED[4],) * 2
    assert agent.resync() == []
    agent.plan(without=(tunnel,))
    assert handshake(wired.pod, POD, wired.outside, KNOWN) == (UNCLAMPED[4],) * 2


def test_data_flows_where_nobody_tells_that_packets_are_too_big(wired: Hosts, kind: Kind) -> None:
    """ICMP is dropped, as so often: without the option set right the connection would stand still."""
    wired.host.run("iptables-legacy", "-A", "OUTPUT", "-p", "icmp", "-j", "DROP")
    agent = Agent(wired.host, kind=kind, interface="outside")
    agent.plan(policy(), *SAMPLE)
    size, port = 200_000, 7001

    def serve() -> socket.socket:
        return socket.create_server((KNOWN, port))

    def send() -> None:
        with socket.create_connection((KNOWN, port), PATIENT) as made:
            made.sendall(bytes(size))

    def receive(listening: socket.socket) -> int:
        accepted, _ = listening.accept()
        accepted.settimeout(PATIENT)
        with accepted:
            received = 0
            while data := accepted.recv(1 << 16):
                received += len(data)
            return received

    with wired.outside.call(serve) as listening:
        receiving = wired.outside.start(lambda: receive(listening))
        wired.pod.call(send)
        assert receiving.result() == size
