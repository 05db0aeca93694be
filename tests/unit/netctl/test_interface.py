"""The WireGuard interface: made, adopted, left alone, brought back; with the real wireguard-go."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilo.bus import Loop
from kilo.config import Config
from kilo.errors import TemporaryError
from kilo.model.plan import Interface
from kilo.netctl import userspace
from kilo.netctl.host import Host as HostView
from kilo.netctl.host import Roles
from kilo.netctl.interface import WireGuardInterface
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.socket import Netlink
from kilo.netctl.userspace import Launcher
from kilo.netctl.wireguard.device import PeerChange
from tests.unit.netctl.hosts import SOCKETS, Host, ip, lines
from tests.unit.netctl.plans import interface, key

KEY = PrivateKey(bytes(range(8, 40)))


class Box:
    """The reconciler with all that it needs. ``now`` is its clock."""

    def __init__(self, host: Host, **flags: Any) -> None:
        self.config = Config(interface=host.interface, **flags)
        self.loop = Loop()
        self.netlink = Netlink()
        self.view, self.roles = HostView(self.netlink), Roles()
        self.said: list[str] = []
        self.launcher = Launcher(self.loop, host.interface, self.said.append)
        self.interface = WireGuardInterface(
            self.config, KEY, self.netlink, self.view, self.roles, self.launcher
        )
        self.now = 0.0
        self.interface._clock = lambda: self.now

    def step(self) -> list[str]:
        """One pass; what it complained of."""
        self.view.load()
        return [o.error for o in self.interface.apply() + self.interface.prune() if o.error]

    def settle(self) -> None:
        """Passes until wireguard-go is there."""
        assert self.step() == []
        for _ in range(500):
            if not self.launcher.starting:
                break
            self.loop.run_for(0.01)
        assert self.step() == []

    def plan(self, item: Interface | None) -> None:
        self.interface.update({} if item is None else {"interface": item}, ["interface"])

    def close(self) -> None:
        if self.interface.device is not None:
            self.interface.device.close()
        self.netlink.close()
        self.loop.close()


@pytest.fixture
def box(host: Host) -> Iterator[Box]:
    with contextlib.closing(Box(host)) as made:
        yield made


def link(host: Host) -> str:
    return lines(f"-o link show {host.interface}")[0]


def test_wireguard_go_is_started_and_set_up_before_it_goes_up(host: Host, box: Box) -> None:
    box.settle()
    assert box.said == [""]
    assert box.interface.device is not None and box.interface.device.kind == "userspace"
    assert box.interface.device.read().private_key == KEY
    assert ",UP" not in link(host), "no plan yet"
    box.plan(interface(mtu=1380, listen_port=51899))
    assert box.step() == []
    assert ",UP" in link(host) and "mtu 1380" in link(host)
    state = box.interface.device.read()
    assert (state.private_key, state.listen_port) == (KEY, 51899)
    assert box.roles.number("wireguard") == box.view.named(host.interface)[0]  # type: ignore[index]
    before = box.netlink.sent
    assert box.step() == [] and not box.interface.drifted()
    assert box.netlink.sent == before


def test_wireguard_go_is_nobodys_child_and_holds_nothing_of_ours(host: Host, box: Box) -> None:
    box.settle()
    (pid,) = host.programs()
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    parent, session = int(stat[1]), int(stat[3])
    assert parent != os.getpid() and session != os.getsid(0)
    targets = {os.readlink(f"/proc/{pid}/fd/{n}") for n in (0, 1, 2)}
    assert targets == {"/dev/null"}
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_a_node_that_does_not_lead_has_it_down(host: Host, box: Box) -> None:
    box.settle()
    for item, up in ((interface(), True), (interface(up=False), False), (interface(), True), (None, False)):
        box.plan(item)
        assert box.step() == []
        assert (",UP" in link(host)) == up


def test_what_an_earlier_run_left_is_adopted_untouched(host: Host, box: Box) -> None:
    box.plan(interface())
    box.settle()
    assert box.interface.device is not None
    box.interface.device.change([PeerChange(key(1), allowed_ips=("10.2.1.0/24",))])
    (pid,) = host.programs()
    with contextlib.closing(Box(host)) as other:
        assert other.step() == []
        assert other.interface.state.peers[key(1)].allowed_ips == {"10.2.1.0/24"}
        assert ",UP" in link(host), "nothing is taken down before the plan is known"
        other.plan(interface())
        assert other.step() == []
        assert other.netlink.sent == 0
    assert host.programs() == [pid]


def test_an_interface_of_another_kind_is_left_alone(host: Host, box: Box) -> None:
    ip(f"link add {host.interface} type bridge")
    before = link(host)
    box.plan(interface())
    (error,) = box.step()
    assert "is of the kind bridge and not WireGuard's: left alone" in error and host.interface in error
    assert link(host) == before and box.roles.link("wireguard") is None and box.netlink.sent == 0
    ip(f"link del {host.interface}")
    box.settle()
    assert ",UP" in link(host)


def test_a_tun_device_that_nobody_serves_is_left_alone(host: Host, box: Box) -> None:
    ip(f"tuntap add {host.interface} mode tun")
    (error,) = box.step()
    assert "nothing answers at /run/wireguard/" in error
    assert host.programs() == [] and box.netlink.sent == 0
    ip(f"tuntap del {host.interface} mode tun")


def test_without_create_interface_it_waits_until_there_is_one(host: Host) -> None:
    with contextlib.closing(Box(host, create_interface=False)) as box:
        (error,) = box.step()
        assert "--create-interface=false" in error
        process = subprocess.Popen(
            ["wireguard-go", "-f", host.interface], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            for _ in range(500):
                box.loop.run_for(0.01)
                if not box.step():
                    break
            assert box.interface.state.private_key == KEY
        finally:
            process.kill()
            process.wait()


def test_it_comes_back_when_it_vanishes_but_not_in_a_frenzy(host: Host, box: Box) -> None:
    box.plan(interface())
    box.settle()
    for wait in (1, 2, 4):
        (pid,) = host.programs()
        os.kill(pid, signal.SIGKILL)
        for _ in range(500):
            if host.interface not in ip("-br link"):
                break
            box.loop.run_for(0.01)
        (error,) = box.step()
        assert "will be made again soon" in error and host.programs() == []
        box.now += wait
        box.settle()
        assert ",UP" in link(host) and box.interface.state.listen_port == 51820
        assert host.programs() != [pid]
    box.interface.lasted()
    ip(f"link del {host.interface}")
    box.settle()
    assert len(host.programs()) == 1


def test_a_port_that_is_taken_is_an_error_until_it_is_free(host: Host, box: Box) -> None:
    box.plan(interface(listen_port=51900))
    box.settle()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 51901))
        box.plan(interface(listen_port=51901))
        (error,) = box.step()
        assert "EADDRINUSE" in error
    assert box.step() == []
    assert box.interface.state.listen_port == 51901


def test_what_was_changed_by_hand_is_a_drift_and_is_repaired(host: Host, box: Box) -> None:
    box.plan(interface())
    box.settle()
    subprocess.run(["wg", "set", host.interface, "listen-port", "51999"], check=True)
    box.interface.load()
    assert box.interface.drifted()
    (outcome,) = box.interface.apply()
    assert outcome.repair
    ip(f"link set {host.interface} mtu 1300")
    box.view.load()
    assert box.interface.drifted()
    assert box.step() == []
    assert "mtu 1420" in link(host) and not box.interface.drifted()


def test_clean_up_leaves_the_interface_unless_told_otherwise(host: Host, box: Box) -> None:
    box.plan(interface())
    box.settle()
    box.interface.clean_up()
    assert ",UP" not in link(host) and len(host.programs()) == 1


def test_clean_up_ends_wireguard_go_where_it_shall(host: Host) -> None:
    with contextlib.closing(Box(host, clean_up_interface=True)) as box:
        box.interface._clock = time.monotonic
        box.plan(interface())
        box.settle()
        assert [o.error for o in box.interface.clean_up() if o.error] == []
        assert host.interface not in ip("-br link")
        for _ in range(500):
            if not host.programs():
                break
            box.loop.run_for(0.01)
        assert host.programs() == [] and not (SOCKETS / f"{host.interface}.sock").exists()


def test_clean_up_touches_no_interface_that_is_not_ours(host: Host) -> None:
    with contextlib.closing(Box(host, clean_up_interface=True)) as box:
        ip(f"link add {host.interface} type bridge")
        ip(f"link set {host.interface} up")
        box.step()
        assert box.interface.clean_up() == []
        assert ",UP" in link(host)


def test_a_socket_that_nobody_listens_on_is_no_obstacle(host: Host, box: Box) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        SOCKETS.mkdir(exist_ok=True)
        stale.bind(str(SOCKETS / f"{host.interface}.sock"))
    box.settle()
    assert len(host.programs()) == 1


def test_what_is_missing_is_said(host: Host, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (error,) = box.step()
    assert "the kernel has no WireGuard (module wireguard) and wireguard-go is not on PATH" in error
    monkeypatch.undo()
    monkeypatch.setattr(userspace, "_TUN", "/nowhere/tun")
    with pytest.raises(TemporaryError, match="wireguard-go needs /nowhere/tun, which is missing"):
        box.launcher.start()


def test_why_wireguard_go_did_not_start_is_said(host: Host, box: Box) -> None:
    ip(f"link add {host.interface} type bridge")
    box.launcher.start()
    box.launcher.start()
    for _ in range(500):
        if box.said:
            break
        box.loop.run_for(0.01)
    (said,) = box.said
    assert "wireguard-go ended with status 1: " in said and "TUN" in said
