"""The encapsulation device. This kernel may have no IPIP, so devices are played by veths."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

import pytest

from kilo.model.plan import Tunnel
from kilo.netctl.host import Host as HostView
from kilo.netctl.host import Roles
from kilo.netctl.netlink.messages import RTM_NEWLINK
from kilo.netctl.netlink.socket import Netlink
from kilo.netctl.tunnel import TunnelDevice
from tests.integration.netctl.faults import Refusing
from tests.integration.netctl.hosts import Host, ip, lines


class Box:
    def __init__(self, netlink: Netlink, compatibility: str) -> None:
        self.netlink = netlink
        self.view, self.roles = HostView(netlink), Roles()
        self.tunnel = TunnelDevice(netlink, self.view, self.roles, compatibility)
        self.now = 0.0
        self.tunnel._clock = lambda: self.now

    def step(self) -> list[str]:
        """One pass; what it complained of."""
        self.view.load()
        self.roles.assign("private", self.view.named("eth0"))
        return [o.error for o in self.tunnel.apply() + self.tunnel.prune() if o.error]

    def device(self) -> str:
        link = self.roles.link("tunnel")
        return link.name if link else ""


@pytest.fixture
def make(host: Host) -> Iterator[Callable[[str], Box]]:
    host.wire()
    with contextlib.closing(Netlink()) as netlink:
        yield lambda compatibility: Box(netlink, compatibility)


def test_without_a_tunnel_in_the_plan_nothing_is_touched(make: Callable[[str], Box]) -> None:
    box = make("")
    ip("link add tunl0 type veth peer name far")
    assert box.step() == []
    assert box.device() == "tunl0", "routes that the Go agent left on it are found"
    assert box.netlink.sent == 0


def test_a_kernel_without_ipip_is_named_as_what_is_missing(make: Callable[[str], Box]) -> None:
    box = make("")
    box.tunnel.update({"tunnel": Tunnel("ipip", "10.2.0.1/32")}, ())
    errors = box.step()
    if os.path.isdir("/sys/module/ipip"):
        assert errors == [] and "mtu 1480" in lines("-o link show tunl0")[0]
        return
    assert len(errors) == 1 and "the kernel has no IPIP (module ipip)" in errors[0]
    assert "EOPNOTSUPP" in errors[0]
    box.tunnel.update({}, ["tunnel"])
    assert box.step() == []


PLANNED = Tunnel("ipip", "10.2.0.1/32")


def test_a_device_that_cannot_be_made_is_tried_again_with_backoff(host: Host) -> None:
    host.wire()
    with contextlib.closing(Refusing(lambda request: errno.EOPNOTSUPP)) as netlink:
        box = Box(netlink, "")
        box.tunnel.update({"tunnel": PLANNED}, ())
        tries = []
        for second in range(200):
            box.now = float(second)
            before = len(netlink.refused)
            said = box.step()
            assert len(said) == len(netlink.refused) - before, "it is said when it is tried, and only then"
            if said:
                tries.append(second)
        assert tries == [0, 1, 3, 7, 15, 31, 63, 123, 183]
        box.tunnel.update({"tunnel": Tunnel("ipip", "10.2.0.2/32")}, ())
        assert len(box.step()) == 1, "another plan is another circumstance"


def test_an_mtu_that_is_refused_is_tried_again_with_backoff(host: Host) -> None:
    host.wire()
    with contextlib.closing(Refusing(lambda request: errno.EINVAL)) as netlink:
        box = Box(netlink, "cilium")
        ip("link add cilium_tunl type veth peer name far")
        box.tunnel.update({"tunnel": Tunnel("cilium", "")}, ())
        for second in range(8):
            box.now = float(second)
            box.step()
        assert [request.kind for request in netlink.refused] == [RTM_NEWLINK] * 4
        netlink.refuse = lambda request: 0
        box.now = 15.0
        assert box.step() == []
        assert "UP" in lines("-o link show cilium_tunl")[0].split(">")[0]


def test_a_device_of_another_kind_is_left_alone(make: Callable[[str], Box]) -> None:
    box = make("")
    ip("link add tunl0 type veth peer name far")
    box.tunnel.update({"tunnel": Tunnel("ipip", "10.2.0.1/32")}, ())
    (error,) = box.step()
    assert "tunl0 is of the kind veth, no IPIP tunnel: left alone" in error
    assert box.device() == "" and box.netlink.sent == 0


def test_flannels_device_may_come_and_go_and_come_back(make: Callable[[str], Box]) -> None:
    box = make("flannel")
    box.tunnel.update({"tunnel": Tunnel("flannel", "")}, ())
    numbers = set()
    for _ in range(2):
        (error,) = box.step()
        assert "flannel.1 does not exist: waiting for Flannel" in error and box.device() == ""
        ip("link add flannel.1 type veth peer name far")
        assert box.step() == [] and box.device() == "flannel.1"
        numbers.add(box.roles.number("tunnel"))
        ip("link del flannel.1")
    assert len(numbers) == 2 and box.netlink.sent == 0


def test_ciliums_tunnel_is_used_and_only_set_up(make: Callable[[str], Box]) -> None:
    box = make("cilium")
    ip("link add cilium_tunl mtu 1300 type veth peer name far")
    box.tunnel.update({"tunnel": Tunnel("cilium", "")}, ())
    assert box.step() == []
    assert box.device() == "cilium_tunl"
    assert "mtu 1300" in lines("-o link show cilium_tunl")[0]
    assert "UP" in lines("-o link show cilium_tunl")[0].split(">")[0]
    assert box.netlink.sent == 1
    assert box.step() == [] and box.netlink.sent == 1


def test_a_device_that_vanishes_between_reading_and_changing(make: Callable[[str], Box]) -> None:
    box = make("cilium")
    ip("link add cilium_tunl type veth peer name far")
    box.view.load()
    box.tunnel.update({"tunnel": Tunnel("cilium", "")}, ())
    ip("link del cilium_tunl")
    (outcome,) = box.tunnel.apply()
    assert (outcome.key, outcome.error) == ("tunnel/link", "tunnel: No such device (ENODEV)")
    ip("link add cilium_tunl type veth peer name far")
    assert box.step() == [] and box.device() == "cilium_tunl", "another device need not wait"
