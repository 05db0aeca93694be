"""tunl0 on a kernel that has IPIP: who makes it, its MTU, what else may stand in its place."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.model.plan import Tunnel
from kilo.netctl.netlink.socket import Netlink
from kilo.netctl.tunnel import LASTING
from tests.integration.netctl.hosts import Host, ip, lines
from tests.integration.netctl.test_tunnel import Box

FALLBACK = Path("/proc/sys/net/core/fb_tunnels_only_for_init_net")
PLAN = {"tunnel": Tunnel("ipip", "10.2.0.1/32")}


def tunl0() -> str:
    """The device's line, "" if it is not there: to ask for it by name would load the module."""
    if "tunl0:" not in Path("/proc/thread-self/net/dev").read_text():
        return ""
    return lines("-o -d link show tunl0")[0]


@pytest.fixture(
    params=["0", pytest.param("2", marks=pytest.mark.long)], ids=["fallback everywhere", "fallback nowhere"]
)
def fallback(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whether every namespace has a tunl0 of the kernel's once ipip is loaded; it is not loaded yet."""
    before = FALLBACK.read_text()
    FALLBACK.write_text(request.param)
    subprocess.run(["modprobe", "-r", "ipip"], check=True)
    try:
        yield request.param
    finally:
        FALLBACK.write_text(before)


@pytest.fixture
def box(fallback: str, host: Host) -> Iterator[Box]:
    host.wire()
    with contextlib.closing(Netlink()) as netlink:
        made = Box(netlink, "")
        made.tunnel.update(PLAN, ())
        yield made


def check(box: Box, mtu: int) -> None:
    """One pass makes all as it should be, and the next has nothing to do."""
    assert box.step() == []
    assert box.device() == "tunl0"
    found = tunl0()
    assert "ipip" in found and f"mtu {mtu}" in found and ",UP" in found.split(">")[0], found
    sent = box.netlink.sent
    assert box.step() == [] and box.netlink.sent == sent


def test_the_module_is_loaded_and_tunl0_is_there(box: Box) -> None:
    assert tunl0() == ""
    check(box, 1480)


def test_it_follows_the_private_links_mtu(box: Box) -> None:
    check(box, 1480)
    ip("link set eth0 mtu 9000")
    check(box, 8980)
    ip("link set eth0 mtu 1400")
    check(box, 1380)


def test_what_was_changed_by_hand_is_put_right(box: Box) -> None:
    check(box, 1480)
    ip("link set tunl0 mtu 1300 down")
    check(box, 1480)


def test_one_that_is_there_already_is_used(box: Box, fallback: str) -> None:
    subprocess.run(["modprobe", "ipip"], check=True)
    if fallback != "0":
        ip("link add tunl0 type ipip")
    before = tunl0().split(":")[0]
    check(box, 1480)
    assert tunl0().split(":")[0] == before, "the same device"


def test_one_that_vanishes_is_made_again(box: Box, fallback: str) -> None:
    """The kernel's own can only be removed with its module, or when it has been renamed."""
    check(box, 1480)
    box.tunnel._clock = lambda: time.monotonic() + LASTING
    ip("link set tunl0 down")
    ip("link set tunl0 name old0")
    if fallback == "0":
        (error,) = box.step()
        assert "tunl0" in error
        ip("link set old0 name tunl0")
    else:
        ip("link del old0")
    check(box, 1480)


CILIUM = {"tunnel": Tunnel("cilium", "")}


def test_ciliums_device_is_used_and_ours_not_made(fallback: str, host: Host) -> None:
    """Cilium gives another name to the kernel's tunl0, or makes a device; its MTU is its business."""
    host.wire()
    subprocess.run(["modprobe", "ipip"], check=True)
    ip("link set tunl0 name cilium_tunl" if fallback == "0" else "link add cilium_tunl type ipip")
    ip("link set cilium_tunl mtu 1400")
    had = tunl0()
    with contextlib.closing(Netlink()) as netlink:
        box = Box(netlink, "cilium")
        box.tunnel.update(CILIUM, ())
        assert box.step() == []
        assert box.device() == "cilium_tunl"
        found = lines("-o link show cilium_tunl")[0]
        assert "mtu 1400" in found and ",UP" in found.split(">")[0]
        assert tunl0() == had, "neither made nor touched"
        sent = netlink.sent
        assert box.step() == [] and netlink.sent == sent


def test_where_cilium_has_none_ours_is_made(fallback: str, host: Host) -> None:
    """And left for Cilium's when that appears."""
    host.wire()
    with contextlib.closing(Netlink()) as netlink:
        box = Box(netlink, "cilium")
        box.tunnel.update(CILIUM, ())
        check(box, 1480)
        ip("link add cilium_tunl type ipip local 10.1.0.10 remote 10.1.0.11")
        assert box.step() == []
        assert box.device() == "cilium_tunl"
        ip("link del cilium_tunl")
        check(box, 1480)
