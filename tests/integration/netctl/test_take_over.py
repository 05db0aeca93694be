"""Taking over from the Go agent, which was killed and left all that it makes, while traffic flows.

pod 10.2.0.5 ── host 10.1.0.10 ── 10.1.0.99 neighbour, with pod 10.2.1.5; beyond it 203.0.113.9
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from kilo.model.plan import Firewall, PlanItem, Route
from tests.feeding import eventually
from tests.integration.netctl.firewall.hosts import SO_RCVBUFFORCE, Namespace, entries
from tests.integration.netctl.hosts import Host, ip, lines
from tests.integration.netctl.worker_box import DESTINATIONS, PLAN_3, Box
from tests.unit.netctl.plans import key

POD, KNOWN, STRANGER = "10.2.0.5", "10.2.1.5", "203.0.113.9"
HOST = "10.1.0.10"
PORT = 4000
MORE: list[PlanItem] = [
    Firewall(ipip_guard=True, forward=True),
    Route("10.2.1.0/24", "private", "10.1.0.99", onlink=True),
    *entries(
        masquerade_from="10.2.0.0/24",
        no_masquerade_to="10.2.0.0/24 10.2.1.0/24 10.1.0.10/32 10.1.0.99/32 10.4.0.1/32 10.64.0.0/14",
        forward_accept_from="10.2.0.0/24 10.2.1.0/24 10.1.0.10/32 10.1.0.99/32",
        forward_accept_to="10.2.0.0/24 10.2.1.0/24 10.1.0.10/32 10.1.0.99/32",
        ipip_accept_from="10.1.0.10/32 10.1.0.99/32",
    ),
]
PLAN: dict[str, PlanItem] = PLAN_3 | {item.key: item for item in MORE}
_GO_V4 = """*nat
:KILO-NAT - [0:0]
-A POSTROUTING -s 10.2.0.0/24 -m comment --comment "Kilo: jump to KILO-NAT chain" -j KILO-NAT
-A KILO-NAT -d 10.1.0.99/32 -m comment --comment "Kilo: do not NAT packets destined for known IPs" -j RETURN
-A KILO-NAT -d 10.2.1.0/24 -m comment --comment "Kilo: do not NAT packets destined for known IPs" -j RETURN
-A KILO-NAT -d 10.2.0.0/24 -m comment --comment "Kilo: do not NAT packets destined for known IPs" -j RETURN
-A KILO-NAT -d 10.4.0.1/32 -m comment --comment "Kilo: do not NAT packets for WireGuared IPs" -j RETURN
-A KILO-NAT -m comment --comment "Kilo: NAT remaining packets" -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:KILO-IPIP - [0:0]
-A FORWARD -d 10.1.0.99/32 -m comment --comment "Kilo: forward packets to private IPs" -j ACCEPT
-A FORWARD -s 10.1.0.99/32 -m comment --comment "Kilo: forward packets from private IPs" -j ACCEPT
-A FORWARD -d 10.2.0.0/24 -m comment --comment "Kilo: forward packets to the pod subnet" -j ACCEPT
-A FORWARD -s 10.2.0.0/24 -m comment --comment "Kilo: forward packets from the pod subnet" -j ACCEPT
-A INPUT -p 4 -m comment --comment "Kilo: jump to IPIP chain" -j KILO-IPIP
-A KILO-IPIP -s 10.1.0.99/32 -m comment --comment "Kilo: allow IPIP traffic" -j ACCEPT
-A INPUT -p 4 -m comment --comment "Kilo: reject other IPIP traffic" -j DROP
COMMIT
"""
_GO_V6 = """*nat
:KILO-NAT - [0:0]
-A KILO-NAT -m comment --comment "Kilo: NAT remaining packets" -j MASQUERADE
COMMIT
*filter
:KILO-IPIP - [0:0]
-A INPUT -p 4 -m comment --comment "Kilo: jump to IPIP chain" -j KILO-IPIP
-A INPUT -p 4 -m comment --comment "Kilo: reject other IPIP traffic" -j DROP
COMMIT
"""
GO_RULES = {"": _GO_V4, "6": _GO_V6}


class Streams:
    """Packets from the pod, numbered: flows that go on, and flows of one packet each.

    What arrives is kept, with the source that it arrives with.
    """

    def __init__(self, pod: Namespace, outside: Namespace) -> None:
        self._over, self._drained = threading.Event(), threading.Event()
        self._sent = 0
        self._arrived: dict[str, dict[int, str]] = {name: {} for name in (KNOWN, STRANGER)}
        self._receivers = []
        for address in (KNOWN, STRANGER):
            listening = outside.call(lambda address=address: self._bound(address, PORT))  # type: ignore[misc]
            listening.settimeout(0.2)
            receiver = threading.Thread(target=self._receive, args=(address, listening))
            self._receivers.append(receiver)
            receiver.start()
        self._sending = pod.start(self._send)

    @staticmethod
    def _bound(address: str, port: int = 0) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)  # whoever reads may be held up
        made.bind((address, port))
        return made

    def _send(self) -> None:
        with self._bound(POD) as lasting:
            for number in itertools.count():
                with self._bound(POD) as fresh:
                    for made, base in ((lasting, 0), (fresh, 1)):
                        for address in (KNOWN, STRANGER):
                            made.sendto(str(2 * number + base).encode(), (address, PORT))
                self._sent = 2 * number + 2
                if self._over.wait(0.001):
                    return

    def _receive(self, address: str, listening: socket.socket) -> None:
        with listening:
            while True:
                try:
                    data, sender = listening.recvfrom(64)
                except TimeoutError:
                    if self._drained.is_set():
                        return
                    continue
                self._arrived[address][int(data)] = sender[0]

    def wait(self) -> None:
        """Until some more packets have arrived."""
        before = len(self._arrived[STRANGER])
        eventually(lambda: len(self._arrived[STRANGER]) > before + 100)

    def end(self) -> dict[str, tuple[int, set[str]]]:
        """By destination: how many packets were lost, and the sources of those that arrived."""
        self._over.set()
        self._sending.result()
        end = time.monotonic() + 5
        while any(len(a) < self._sent for a in self._arrived.values()) and time.monotonic() < end:
            time.sleep(0.02)
        self._drained.set()
        for receiver in self._receivers:
            receiver.join()
        return {
            address: (self._sent - len(arrived), set(arrived.values()))
            for address, arrived in self._arrived.items()
        }


class Left:
    """A host on which the Go agent ran, in one kind of tables, with a pod and a world around it."""

    def __init__(self, stack: contextlib.ExitStack, host: Host, variant: str) -> None:
        self.pod, self.outside = Namespace(), Namespace()
        for namespace in (self.pod, self.outside):
            stack.callback(namespace.close)
            namespace.ip("link set lo up")
        ip(f"link set eth0-far netns {self.outside.name}")
        self.outside.ip(
            "addr add 10.1.0.1/24 dev eth0-far\naddr add 10.1.0.99/24 dev eth0-far\nlink set eth0-far up\n"
            f"addr add {KNOWN}/32 dev lo\naddr add {STRANGER}/32 dev lo\nroute add 10.2.0.0/24 via {HOST}"
        )
        ip(f"link add bridge type veth peer name eth0 netns {self.pod.name}")
        ip("addr add 10.2.0.1/24 dev bridge")
        ip("link set bridge up")
        self.pod.ip(f"addr add {POD}/24 dev eth0\nlink set eth0 up\nroute add default via 10.2.0.1")
        for version, text in GO_RULES.items():
            subprocess.run([f"ip{version}tables-{variant}-restore"], input=text, text=True, check=True)
        self._leave_wireguard(host.interface)

    def _leave_wireguard(self, interface: str) -> None:
        """Its addresses, routes, rules and peers; some are of nodes that have gone."""
        subprocess.run(["wg", "set", interface, "peer", key(9), "allowed-ips", "10.99.0.0/24"], check=True)
        subprocess.run(["wg", "set", interface, "peer", key(1), "allowed-ips", "10.64.1.0/24"], check=True)
        ip(f"addr add 10.4.0.7/16 dev {interface}")
        ip(f"link set {interface} up")
        ip(f"route add 10.64.1.0/24 via 10.4.0.2 dev {interface} proto static src {HOST} onlink")
        ip(f"route add 10.99.0.0/24 via 10.4.0.9 dev {interface} proto static src {HOST} onlink")
        ip("route add 10.2.1.0/24 via 10.1.0.99 dev eth0 proto static onlink")
        ip("rule add from 10.2.0.0/24 to 10.1.0.99/32 lookup 1107")
        ip(f"rule add to 10.1.0.99/32 iif {interface} lookup 1107")


def saved() -> str:
    """All rules of all kinds, and all sets."""
    programs = [[f"ip{v}tables-{kind}-save"] for v in ("", "6") for kind in ("legacy", "nft")]
    return "".join(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in programs
    )


@pytest.fixture
def left_by(box: Box, wireguard_go: str, request: pytest.FixtureRequest) -> Iterator[Left]:
    assert wireguard_go == box.host.interface
    with contextlib.ExitStack() as stack:
        yield Left(stack, box.host, request.param)


@pytest.mark.parametrize(
    ("left_by", "flag"),
    [("legacy", "legacy"), ("nft", "nftables"), ("nft", "auto"), ("legacy", "nftables"), ("nft", "legacy")],
    indirect=["left_by"],
)
def test_nothing_is_lost_nothing_is_masqueraded_and_nothing_is_left(
    box: Box, left_by: Left, flag: str, request: pytest.FixtureRequest
) -> None:
    variant = request.node.callspec.params["left_by"]
    if (variant, flag) in (("legacy", "nftables"), ("nft", "legacy")):
        subprocess.run([f"iptables-{variant}", "-P", "FORWARD", "ACCEPT"], check=True)
    streams = Streams(left_by.pod, left_by.outside)
    try:
        streams.wait()
        box.plan(PLAN)
        with box.worker(firewall=flag, clean_up=False):
            box.applied()
            eventually(lambda: box.routes() == DESTINATIONS | {"10.2.1.0/24"})
            streams.wait()
    finally:
        seen = streams.end()
    assert seen == {KNOWN: (0, {POD}), STRANGER: (0, {HOST})}
    text = saved()
    for trace in ("do not NAT", "jump to", "NAT remaining", "forward packets", "IPIP traffic"):
        assert trace not in text
    assert ("KILO-NAT" in text) == (flag == "legacy")
    assert lines("route show proto static") == []
    assert lines(f"addr show dev {box.host.interface}")[2].startswith("inet 10.4.0.1/16")
    assert "10.4.0.7" not in ip("addr")
    assert "1107" not in ip("rule")
    assert key(9) not in box.peers()
