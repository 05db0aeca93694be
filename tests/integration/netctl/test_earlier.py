"""The interface that a run with another --interface left: set down if it is proven ours, else left alone."""

from __future__ import annotations

import base64
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.errors import TemporaryError
from kilo.log import Logger
from kilo.netctl import earlier, ports
from kilo.netctl.earlier import AGAIN, EarlierInterface
from kilo.netctl.host import Host as HostView
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.messages import RTM_NEWADDR, AddressInfo, LinkInfo, pack_address
from kilo.netctl.netlink.socket import NLM_F_CREATE, Netlink, Request
from kilo.netctl.sole import Claim
from kilo.netctl.wireguard.device import Device, DeviceState
from kilo.netctl.wireguard.uapi import Userspace
from tests.feeding import eventually
from tests.integration.netctl.faults import Refusing
from tests.integration.netctl.hosts import Host, ip, lines
from tests.integration.netctl.test_interface import KEY
from tests.integration.netctl.worker_box import DESTINATIONS, PLAN_3, Box
from tests.unit.netctl.plans import key

OTHER_KEY = PrivateKey(bytes(range(40, 72)))


class Left:
    """A WireGuard interface beside the one of the host, with the reconciler that looks at it."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.name = f"{host.interface}b"
        self._secret = directory / "secret"
        self.netlink = Refusing()
        self.view = HostView(self.netlink)
        self.earlier = EarlierInterface(host.interface, KEY, self.netlink, self.view)
        self._interface = host.interface

    def create(self, name: str) -> None:
        subprocess.run(["wireguard-go", name], check=True, capture_output=True)

    def make_successor(self) -> None:
        """The interface of this run."""
        self.create(self._interface)

    def make(self, private: PrivateKey = KEY) -> None:
        self._secret.write_text(base64.b64encode(private.reveal()).decode())
        self.create(self.name)
        command = ["wg", "set", self.name, "listen-port", "51820", "private-key", str(self._secret)]
        subprocess.run(command, check=True)
        ip(f"link set {self.name} up")
        eventually(lambda: not ports.is_unheard_of(51820), what="it has its port")

    def mark(self) -> None:
        self.view.load()
        link = self.view.named(self.name)
        assert link is not None
        marked = pack_address(AddressInfo(link.number, "10.4.0.1/16", 171))
        with contextlib.closing(Netlink()) as netlink:
            assert netlink.change([Request(RTM_NEWADDR, NLM_F_CREATE, marked)]) == [None]

    def step(self) -> list[str]:
        """One pass with a plan; the errors."""
        self.view.load()
        self.earlier.update({}, [])
        return [o.error for o in self.earlier.apply() + self.earlier.prune() if o.error]

    def is_up(self) -> bool:
        return ",UP" in lines(f"-o link show {self.name}")[0]


def device(name: str) -> DeviceState:
    with contextlib.closing(Userspace(name)) as opened:
        return opened.read()


@pytest.fixture
def left(host: Host, tmp_path: Path) -> Iterator[Left]:
    made = Left(host, tmp_path)
    made.make_successor()
    yield made
    made.netlink.close()


def test_interface_with_our_key_and_address_is_set_down_and_its_port_is_free(left: Left) -> None:
    left.make()
    left.mark()
    subprocess.run(["wg", "set", left.name, "peer", key(1), "allowed-ips", "10.2.1.0/24"], check=True)
    assert device(left.name).peers
    assert left.step() == []
    assert not left.is_up() and left.earlier.released == {51820}
    eventually(lambda: ports.is_free(51820), what="wireguard-go closes its socket")
    assert not device(left.name).peers, "else it would go on to speak to them"
    assert "10.4.0.1" not in ip(f"address show {left.name}")
    ip(f"link set {left.name} up")
    assert left.step() == [] and left.is_up(), "what sets it up after that is not us"


def test_interface_with_our_key_and_route_is_set_down(left: Left) -> None:
    """Addresses say nothing before Linux 5.18; its address has to go all the same."""
    left.make()
    ip(f"address add 10.4.0.1/16 dev {left.name}")
    ip(f"route add 10.2.1.0/24 dev {left.name} proto 171")
    assert left.step() == []
    assert not left.is_up() and "10.4.0.1" not in ip(f"address show {left.name}")


@pytest.mark.parametrize("private", [KEY, OTHER_KEY], ids=["our key, no mark", "our mark, another key"])
def test_interface_without_all_marks_is_left_alone(left: Left, private: PrivateKey) -> None:
    left.make(private)
    if private is OTHER_KEY:
        left.mark()
    before = ip(f"-4 address show {left.name}")
    for _ in range(2):
        assert left.step() == []
    assert left.is_up() and ip(f"-4 address show {left.name}") == before and left.netlink.sent == 0


def test_interface_of_a_netctl_that_runs_is_left_alone_until_that_ends(left: Left) -> None:
    left.make()
    left.mark()
    with contextlib.closing(Claim(left.name, Logger("test", "none"))):
        assert left.step() == [] and left.is_up()
    assert left.step() == [] and not left.is_up()


def test_interface_of_a_tun_that_no_program_serves_is_left_alone(left: Left) -> None:
    ip(f"tuntap add {left.name} mode tun")
    ip(f"link set {left.name} up")
    left.mark()
    assert left.step() == [] and left.is_up()
    ip(f"tuntap del {left.name} mode tun")


def test_interface_stays_until_there_is_a_plan_and_a_successor(host: Host, tmp_path: Path) -> None:
    """It is judged with the plan: what marks it may be gone when the other interface is there."""
    left = Left(host, tmp_path)
    left.make()
    left.mark()
    left.view.load()
    assert left.earlier.apply() == [] and left.is_up()
    assert left.step() == [] and left.is_up()
    ip(f"address flush dev {left.name}")
    left.make_successor()
    assert left.step() == [] and not left.is_up()
    left.netlink.close()


def test_interface_that_cannot_be_read_is_set_down_once_it_can(left: Left) -> None:
    left.make()
    left.mark()
    now, opens = 0.0, left.earlier.open_device

    def busy(link: LinkInfo) -> Device:
        raise TemporaryError(f"{link.name} does not answer")

    left.earlier._clock = lambda: now
    left.earlier.open_device = busy
    assert left.step() == [] and left.is_up()
    ip(f"address flush dev {left.name}")
    left.earlier.open_device = opens
    now += AGAIN
    assert left.step() == [] and not left.is_up()


def test_taps_without_our_marks_are_not_looked_for_in_the_file_system(
    left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def socket_path(name: str) -> str:
        asked.append(name)
        return f"/nonexistent/{name}"

    left.make()
    monkeypatch.setattr(earlier, "socket_path", socket_path)
    left.earlier.has_successor = lambda: True
    for _ in range(2):
        assert left.step() == []
    assert asked == []


def test_interface_that_cannot_be_set_down_is_named(left: Left) -> None:
    left.make()
    left.mark()
    left.netlink.refuse = lambda request: 1
    (error,) = left.step()
    assert error.startswith(f"{left.name}, left by an agent with another --interface: ") and "EPERM" in error
    assert left.is_up() and left.step() == [], "again with backoff"


def test_worker_with_another_interface_takes_the_place_of_the_one_before(box: Box) -> None:
    old, new = box.host.interface, f"{box.host.interface}b"
    box.plan(PLAN_3)
    with box.worker() as worker:
        box.whole()
        box.applied()
        worker.end(9)
    with box.worker(interface=new) as worker:
        state = box.applied(worker.process.pid)
        assert ",UP" in lines(f"-o link show {new}")[0]
        assert ",UP" not in lines(f"-o link show {old}")[0]
        assert {line.split()[0] for line in lines(f"route show proto 171 dev {new}")} == DESTINATIONS
        assert "10.4.0.1" in ip(f"address show {new}") and "10.4.0.1" not in ip(f"address show {old}")
        assert not state.failing
        worker.end(9)
