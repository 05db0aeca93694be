"""The kernel's WireGuard, through its adapter: the contract, the reconcilers, and two that talk."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from kilo.model.keys import PresharedKey
from kilo.model.plan import PlanItem, PlannedPeer
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.socket import KernelError
from kilo.netctl.wireguard.device import PeerChange
from kilo.netctl.wireguard.kernel import Kernel
from kilo.netctl.wireguard.peers import Peers
from tests.lab.host import Host as LabHost
from tests.lab.host import wait_until
from tests.lab.ping import open_socket, reachable
from tests.lab.underlay import connect
from tests.unit.netctl.hosts import Host, ip, lines
from tests.unit.netctl.plans import interface as planned_interface
from tests.unit.netctl.plans import key, node
from tests.unit.netctl.test_interface import KEY, Box
from tests.unit.netctl.wireguard.contract import DeviceContract, wg

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


def test_an_interface_that_is_gone_is_an_error_of_the_device(device: Kernel, interface: str) -> None:
    ip(f"link del {interface}")
    with pytest.raises(KernelError, match="ENODEV"):
        device.read()
    assert "ENODEV" in device.change([PeerChange(key(1))])[0]


@pytest.mark.parametrize("network", ["192.0.2", "2001:db8:1:"])
def test_two_talk_with_a_preshared_key(network: str, logs: Path) -> None:
    """Over IPv4 and over IPv6: handshake, keepalive, and a ping through the tunnel."""
    names = ("left", "right")
    hosts = [LabHost(name, logs) for name in names]
    devices: list[Kernel] = []
    try:
        connect(hosts[0], "eth0", hosts[1], "eth0")
        keys = [PrivateKey(bytes([n + 1]) * 32) for n in range(2)]
        outside = [f"{network}:{n}" if ":" in network else f"{network}.{n}" for n in (1, 2)]
        for n, host in enumerate(hosts):
            bits = 64 if ":" in network else 24
            host.ip(f"addr add {outside[n]}/{bits} dev eth0", "link add wg0 type wireguard")
            device = host.call(lambda: Kernel("wg0"))
            devices.append(device)
            device.configure(keys[n], 51820)
            host.ip(f"addr add 10.9.0.{n + 1}/24 dev wg0", "link set wg0 up")
        for n, device in enumerate(devices):
            other = 1 - n
            peer = PeerChange(
                keys[other].public(),
                allowed_ips=(f"10.9.0.{other + 1}/32",),
                endpoint=(outside[other], 51820),
                keepalive=1 if n else None,
                preshared_key=PresharedKey(key(77)),
            )
            assert device.change([peer]) == [""]

        def met(n: int) -> bool:
            state = devices[n].read().peers[keys[1 - n].public()]
            return state.last_handshake > 0 and state.received_bytes > 0 and state.sent_bytes > 0

        wait_until(lambda: met(0) and met(1), 60, "both have a handshake")
        with hosts[0].call(open_socket) as raw:
            assert reachable({"left": raw}, {"right": "10.9.0.2"}, 30)
        assert devices[0].read().peers[keys[1].public()].endpoint == (outside[1], 51820)
    finally:
        for device in devices:
            device.close()
        for host in hosts:
            host.close()
