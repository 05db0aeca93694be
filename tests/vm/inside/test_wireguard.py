"""The kernel's WireGuard, through its adapter: the contract, the reconcilers, and two hosts that talk."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from kilo.config import Config
from kilo.doctor.host import port
from kilo.model.keys import PresharedKey
from kilo.model.plan import PlanItem, PlannedPeer
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.socket import KernelError
from kilo.netctl.wireguard.device import PeerChange, PeerState
from kilo.netctl.wireguard.kernel import Kernel
from kilo.netctl.wireguard.peers import Peers
from tests.integration.netctl.hosts import SOCKETS, Host, ip, lines
from tests.integration.netctl.test_earlier import Left
from tests.integration.netctl.test_interface import KEY, Box
from tests.integration.netctl.wireguard.contract import DeviceContract, wg
from tests.lab.host import Host as LabHost
from tests.lab.host import wait_until
from tests.lab.ping import open_socket, reachable
from tests.lab.underlay import connect
from tests.unit.netctl.plans import interface as planned_interface
from tests.unit.netctl.plans import key, node

MANY = 2000


@pytest.fixture
def interface(host: Host) -> str:
    """A WireGuard interface of the kernel's; its name."""
    ip(f"link add {host.interface} type wireguard")
    return host.interface


@pytest.fixture
def device(interface: str) -> Iterator[Kernel]:
    with contextlib.closing(Kernel(interface)) as made:
        yield made


class TestKernel(DeviceContract):
    """The kernel keeps the contract that wireguard-go does."""


def peers_of(*numbers: int) -> dict[str, PlanItem]:
    return {item.key: item for n in numbers for item in node(n) if isinstance(item, PlannedPeer)}


class Settled:
    """The reconciler of peers on a device, with a count of the messages that a plan took."""

    def __init__(self, device: Kernel) -> None:
        self._device = device
        self._peers = Peers(lambda: device)
        self._peers.load()

    def plan(self, upserts: Mapping[str, PlanItem], removals: Sequence[str] = ()) -> int:
        """Apply a change of the plan; the messages sent."""
        before = self._device._netlink.sent
        self._peers.update(upserts, removals)
        for step in (self._peers.apply, self._peers.prune):
            while True:
                assert [outcome.error for outcome in step() if outcome.error] == []
                if not self._peers.more:
                    break
        return self._device._netlink.sent - before

    def read_again(self) -> int:
        """Compare with what the device has, as at a resync; the messages sent."""
        self._peers.load()
        return self.plan({})


def test_only_differences_are_sent(device: Kernel) -> None:
    mesh = Settled(device)
    assert mesh.plan(peers_of(*range(1, MANY + 1))) < MANY / 50
    assert len(device.read().peers) == MANY
    assert mesh.read_again() == 0

    (moved,) = peers_of(7).values()
    assert isinstance(moved, PlannedPeer)
    elsewhere = PlannedPeer(moved.public_key, moved.allowed_ips, "2001:db8::7", 51999, 25)
    assert mesh.plan({moved.key: elsewhere}) == 1
    state = device.read().peers[moved.public_key]
    assert (state.endpoint, state.keepalive) == (("2001:db8::7", 51999), 25)
    assert state.allowed_ips == set(moved.allowed_ips)

    secret = PlannedPeer(
        moved.public_key, moved.allowed_ips, "2001:db8::7", 51999, 25, PresharedKey(key(5000))
    )
    assert mesh.plan({moved.key: secret}) == 1
    assert device.read().peers[moved.public_key].preshared_key == PresharedKey(key(5000))
    assert mesh.plan({}, [moved.key]) == 1
    assert len(device.read().peers) == MANY - 1
    assert mesh.read_again() == 0


def test_an_allowed_ip_that_moves_is_never_on_neither(
    device: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every message each of the networks is on one peer, in whatever direction they move."""
    networks = (*(f"10.{64 + n // 250}.{n % 250}.0/24" for n in range(700)), "fd00:2::/64")
    mesh = Settled(device)
    mesh.plan({p.key: p for p in (PlannedPeer(key(1), networks), PlannedPeer(key(2), ("10.2.2.0/24",)))})
    seen: list[frozenset[str]] = []
    send: Callable[[bytes], None] = device._set

    def watch(attributes: bytes) -> None:
        send(attributes)
        seen.append(frozenset(n for peer in device.read().peers.values() for n in peer.allowed_ips))

    monkeypatch.setattr(device, "_set", watch)
    for new, old in ((2, 1), (1, 2)):
        plan = (PlannedPeer(key(new), networks), PlannedPeer(key(old), ("10.2.2.0/24",)))
        mesh.plan({p.key: p for p in plan})
        assert device.read().peers[key(new)].allowed_ips == set(networks)
        assert device.read().peers[key(old)].allowed_ips == {"10.2.2.0/24"}
    assert seen and all(set(networks) <= found for found in seen)


@pytest.fixture
def box(host: Host) -> Iterator[Box]:
    with contextlib.closing(Box(host)) as made:
        yield made


def test_the_interface_is_made_in_the_kernel_and_set_up_before_it_goes_up(host: Host, box: Box) -> None:
    def link() -> str:
        return lines(f"-o -d link show {host.interface}")[0]

    assert box.step() == []
    assert "wireguard" in link() and ",UP" not in link()
    assert host.programs() == [] and box.interface.device is not None
    assert box.interface.device.kind == "kernel"
    box.plan(planned_interface(mtu=1380, listen_port=51899))
    assert box.step() == []
    assert ",UP" in link() and "mtu 1380" in link()
    state = box.interface.device.read()
    assert (state.private_key, state.listen_port) == (KEY, 51899)
    sent = box.netlink.sent
    assert box.step() == [] and box.netlink.sent == sent

    box.interface.device.change([PeerChange(key(1), allowed_ips=("10.2.1.0/24",))])
    with contextlib.closing(Box(host)) as other:
        assert other.step() == [] and ",UP" in link()
        assert other.interface.state.peers.keys() == {key(1)}, "an earlier run's interface is adopted"

    box.plan(planned_interface(up=False, mtu=1380, listen_port=51899))
    assert box.step() == [] and ",UP" not in link()
    box.interface.lasted()
    ip(f"link del {host.interface}")
    box.plan(planned_interface())
    assert box.step() == []
    assert ",UP" in link() and box.interface.state.private_key == KEY


def test_a_port_that_is_taken_is_named_and_had_once_it_is_free(host: Host, box: Box) -> None:
    """The kernel takes the port only when the interface goes up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 51901))
        box.plan(planned_interface(listen_port=51901))
        (error,) = box.step()
        assert "EADDRINUSE" in error
    assert box.step() == []
    assert ",UP" in lines(f"-o link show {host.interface}")[0]
    assert wg("show", host.interface, "listen-port").strip() == "51901"


def test_a_port_of_an_interface_that_an_earlier_run_left_names_it(host: Host, box: Box) -> None:
    """The kernel's device has no process: each one is asked for its port."""
    left = f"{host.interface}b"
    ip(f"link add {left} type wireguard")
    wg("set", left, "listen-port", "51820")
    ip(f"link set {left} up")
    box.plan(planned_interface())
    (error,) = box.step()
    assert f"UDP port 51820 is taken by the WireGuard interface {left} (EADDRINUSE)" in error
    assert f"ip link delete {left}" in error
    finding = port(Config(interface=host.interface))
    assert (finding.verdict, left in finding.found, left in finding.mend) == ("fail", True, True)
    ip(f"link del {left}")
    assert box.step() == []
    assert ",UP" in lines(f"-o link show {host.interface}")[0]
    finding = port(Config(interface=host.interface))
    assert (finding.verdict, finding.found) == ("ok", f"{host.interface} has UDP port 51820")


class KernelLeft(Left):
    """An interface of the kernel's that an earlier run left."""

    def create(self, name: str) -> None:
        ip(f"link add {name} type wireguard")


def test_an_interface_that_is_proven_ours_gives_up_its_port(host: Host, box: Box, tmp_path: Path) -> None:
    left = KernelLeft(host, tmp_path)
    left.make()
    left.mark()
    wg("set", left.name, "peer", key(1), "allowed-ips", "10.2.1.0/24")
    box.plan(planned_interface())
    (error,) = box.step()
    assert f"taken by the WireGuard interface {left.name} " in error
    assert left.step() == []
    assert not left.is_up() and left.netlink.sent == 2, "down, and the address"
    with contextlib.closing(Kernel(left.name)) as opened:
        assert not opened.read().peers
    assert box.step() == []
    assert ",UP" in lines(f"-o link show {host.interface}")[0]
    left.netlink.close()


def test_an_interface_that_is_gone_is_an_error_of_the_device(device: Kernel, interface: str) -> None:
    ip(f"link del {interface}")
    with pytest.raises(KernelError, match="ENODEV"):
        device.read()
    with pytest.raises(KernelError, match="ENODEV"):
        device.change([PeerChange(key(1))])


def test_wireguard_go_that_runs_is_adopted_and_the_kernel_follows_it(host: Host, box: Box) -> None:
    """As after an upgrade of the host's kernel: what serves peers is not ended, but not started again."""
    process = subprocess.Popen(
        ["wireguard-go", "-f", host.interface], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    box.plan(planned_interface())
    try:
        wait_until((SOCKETS / f"{host.interface}.sock").exists, 30, "wireguard-go serves")
        assert box.step() == []
        assert box.interface.device is not None and box.interface.device.kind == "userspace"
        assert box.interface.state.private_key == KEY
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: host.interface not in ip("-br link"), 30, "its device is gone")
    assert box.step() == []
    assert box.interface.device is not None and box.interface.device.kind == "kernel"
    assert ",UP" in lines(f"-o link show {host.interface}")[0]
    assert box.interface.state.private_key == KEY


class Pair:
    """Two hosts with a cable and a tunnel between them, each the other's peer."""

    def __init__(self, network: str, logs: Path) -> None:
        self.hosts = [LabHost(name, logs) for name in ("left", "right")]
        self.keys = [PrivateKey(bytes([n + 1]) * 32) for n in range(2)]
        self.outside = [f"{network}:{n}" if ":" in network else f"{network}.{n}" for n in (1, 2)]
        self.devices: list[Kernel] = []
        connect(self.hosts[0], "eth0", self.hosts[1], "eth0")
        for n, host in enumerate(self.hosts):
            bits = 64 if ":" in network else 24
            host.ip(f"addr add {self.outside[n]}/{bits} dev eth0", "link add wg0 type wireguard")
            device = host.call(lambda: Kernel("wg0"))
            self.devices.append(device)
            device.configure(self.keys[n], 51820)
            host.ip(f"addr add 10.9.0.{n + 1}/24 dev wg0", "link set wg0 up")
        for n, device in enumerate(self.devices):
            other = 1 - n
            peer = PeerChange(
                self.keys[other].public(),
                allowed_ips=(f"10.9.0.{other + 1}/32",),
                endpoint=(self.outside[other], 51820),
                keepalive=1 if n else None,
                preshared_key=PresharedKey(key(77)),
            )
            assert device.change([peer]) == [""]
        wait_until(lambda: self.met(0) and self.met(1), 60, "both have a handshake")

    def seen(self, n: int) -> PeerState:
        """What one side knows of the other."""
        return self.devices[n].read().peers[self.keys[1 - n].public()]

    def met(self, n: int) -> bool:
        state = self.seen(n)
        return state.last_handshake > 0 and state.received_bytes > 0 and state.sent_bytes > 0

    def close(self) -> None:
        for device in self.devices:
            device.close()
        for host in self.hosts:
            host.close()


@pytest.fixture(params=["192.0.2", "2001:db8:1:"], ids=["IPv4", "IPv6"])
def pair(request: pytest.FixtureRequest, logs: Path) -> Iterator[Pair]:
    with contextlib.closing(Pair(request.param, logs)) as made:
        yield made


def test_two_talk_with_a_preshared_key(pair: Pair) -> None:
    """Handshake, keepalive, and a ping through the tunnel."""
    with pair.hosts[0].call(open_socket) as raw:
        assert reachable({"left": raw}, {"right": "10.9.0.2"}, 30)
    assert pair.seen(0).endpoint == (pair.outside[1], 51820)


@pytest.mark.long
def test_an_endpoint_that_the_kernel_learnt_stays_until_there_is_news(pair: Pair) -> None:
    """The right side moves to another port, as behind NAT, and the left one hears from it there."""
    name, there = pair.keys[1].public(), pair.outside[1]
    plan = PlannedPeer(name, ("10.9.0.2/32",), there, 51820, preshared_key=PresharedKey(key(77)))
    left = Settled(pair.devices[0])
    assert left.plan({plan.key: plan}) == 0, "all is as planned"
    pair.devices[1].configure(None, 51999)
    wait_until(lambda: pair.seen(0).endpoint == (there, 51999), 30, "the kernel learnt the new endpoint")
    assert left.read_again() == 0
    assert pair.seen(0).endpoint == (there, 51999)
    moved = PlannedPeer(name, ("10.9.0.2/32",), there, 51821, preshared_key=PresharedKey(key(77)))
    assert left.plan({moved.key: moved}) == 1, "the operator says that it moved again"
    wait_until(lambda: pair.seen(0).endpoint == (there, 51999), 30, "its own packets know better")
    assert left.read_again() == 0
