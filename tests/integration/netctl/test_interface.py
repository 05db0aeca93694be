"""The WireGuard interface: made, adopted, left alone, brought back; with the real wireguard-go."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilo.bus import Loop
from kilo.config import Config
from kilo.errors import TemporaryError
from kilo.model.plan import Interface
from kilo.netctl import ports, userspace
from kilo.netctl.failures import LINK, SETTINGS
from kilo.netctl.fights import MANY
from kilo.netctl.host import Host as HostView
from kilo.netctl.host import Roles
from kilo.netctl.interface import WireGuardInterface
from kilo.netctl.key import PrivateKey
from kilo.netctl.userspace import Launcher
from kilo.netctl.wireguard.device import PeerChange
from tests.feeding import eventually
from tests.integration.netctl.faults import Refusing
from tests.integration.netctl.hosts import SOCKETS, Host, ip, lines
from tests.unit.netctl.plans import interface, key

KEY = PrivateKey(bytes(range(8, 40)))


class Box:
    """The reconciler with all that it needs. ``now`` is its clock."""

    def __init__(self, host: Host, **flags: Any) -> None:
        self.config = Config(interface=host.interface, **flags)
        self.loop = Loop()
        self.netlink = Refusing()
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


def test_an_interface_that_vanishes_between_reading_and_changing(host: Host, box: Box) -> None:
    """What was read says that it is there."""
    box.plan(interface())
    box.settle()
    box.interface.lasted()
    box.plan(interface(mtu=1380))
    ip(f"link del {host.interface}")
    eventually(lambda: not host.programs(), what="wireguard-go ends by itself")
    (outcome,) = box.interface.apply()
    assert outcome.error == f"{host.interface}: No such device (ENODEV)"
    assert box.step() == []
    box.settle()
    assert "mtu 1380" in link(host) and ",UP" in link(host)


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


def test_a_name_that_is_an_alternative_one_of_another_interface_names_that(host: Host, box: Box) -> None:
    """It is in no list of names, and the kernel makes no second interface of that name."""
    ip("link add br0 type bridge")
    ip(f"link property add dev br0 altname {host.interface}")
    (error,) = box.step()
    assert f"{host.interface}: this is an alternative name of br0" in error
    assert f"ip link property del dev br0 altname {host.interface}" in error
    ip(f"link property del dev br0 altname {host.interface}")
    box.now += 1
    box.settle()


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
    for wait in (0, 0, 1, 2, 4):
        (pid,) = host.programs()
        os.kill(pid, signal.SIGKILL)
        for _ in range(500):
            if host.interface not in ip("-br link"):
                break
            box.loop.run_for(0.01)
        if wait:
            (error,) = box.step()
            assert "will be made again soon" in error and host.programs() == []
        box.now += wait
        box.settle()
        assert ",UP" in link(host) and box.interface.state.listen_port == 51820
        assert host.programs() != [pid]
    box.interface.lasted()
    ip(f"link del {host.interface}")
    eventually(lambda: not host.programs(), what="wireguard-go ends by itself")
    box.settle()
    assert len(host.programs()) == 1


def test_an_interface_that_cannot_be_made_is_tried_again_with_backoff(host: Host, box: Box) -> None:
    box.netlink.refuse = lambda request: errno.ENOMEM
    box.plan(interface())
    tries = []
    for second in range(70):
        box.now = float(second)
        before = len(box.netlink.refused)
        said = box.step()
        assert said == [f"{host.interface}: Cannot allocate memory (ENOMEM)"] * len(said)
        assert len(said) == len(box.netlink.refused) - before
        if said:
            tries.append(second)
    assert tries == [0, 1, 3, 7, 15, 31, 63]
    box.netlink.refuse = lambda request: 0
    box.now = 200.0
    box.settle()
    assert ",UP" in link(host)


def test_a_link_that_is_refused_is_tried_again_with_backoff_and_the_plan_resets_it(
    host: Host, box: Box
) -> None:
    box.settle()
    box.netlink.refuse = lambda request: errno.EBUSY
    box.plan(interface(mtu=1380))
    for second in range(8):
        box.now = 100.0 + second
        box.step()
    assert len(box.netlink.refused) == 4
    box.plan(interface(mtu=1390))
    (error,) = box.step()
    assert error == f"{host.interface}: {os.strerror(errno.EBUSY)} (EBUSY)"
    box.netlink.refuse = lambda request: 0
    box.now += 1
    assert box.step() == [] and "mtu 1390" in link(host)


@contextlib.contextmanager
def squatter(port: int, address: str = "0.0.0.0") -> Iterator[int]:
    """Another program that has a UDP port here; its process id."""
    bind = f"import socket,time; s=socket.socket(2,2); s.bind(({address!r},{port}))"
    code = f"{bind}; print(flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def test_who_has_the_port_is_said_and_it_is_taken_once_it_is_free(host: Host, box: Box) -> None:
    box.plan(interface(listen_port=51900))
    box.settle()
    with squatter(51901, "127.0.0.1") as pid:
        box.plan(interface(listen_port=51901))
        (error,) = box.step()
        assert f"UDP port 51901 is taken by pid {pid} ({sys.executable} -c import socket" in error
        assert "EADDRINUSE" in error
        assert box.interface.device is not None
        assert box.interface.device.read().listen_port == 51900, "until then it has the port it had"
        box.now += 0.5
        assert box.step() == [], "said again with the backoff alone"
    box.now += 0.1
    (outcome,) = box.interface.apply()
    assert (outcome.key, outcome.error) == ("interface/settings", "")
    assert box.interface.state.listen_port == 51901


def test_a_port_that_is_taken_at_the_start(host: Host, box: Box) -> None:
    with squatter(51820) as pid:
        box.plan(interface())
        box.step()
        for _ in range(500):
            if not box.launcher.starting:
                break
            box.loop.run_for(0.01)
        (error,) = box.step()
        assert f"taken by pid {pid}" in error
        assert ",UP" not in link(host), "up only once it has its port"
    assert box.step() == []
    assert ",UP" in link(host) and box.interface.state.listen_port == 51820


def test_a_port_of_an_interface_that_an_earlier_run_left_names_it(host: Host, box: Box) -> None:
    left = f"{host.interface}b"
    subprocess.run(["wireguard-go", left], check=True, capture_output=True)
    subprocess.run(["wg", "set", left, "listen-port", "51820"], check=True)
    ip(f"link set {left} up")
    eventually(lambda: not ports.is_unheard_of(51820), what="the other has the port")
    box.settle()
    box.plan(interface())
    (error,) = box.step()
    assert f"UDP port 51820 is taken by the WireGuard interface {left} of pid " in error
    assert "(EADDRINUSE)" in error and f"ip link delete {left}" in error
    ip(f"link del {left}")
    eventually(lambda: ports.is_unheard_of(51820), what="the port is free")
    assert box.step() == []
    assert box.interface.state.listen_port == 51820 and ",UP" in link(host)


def test_a_port_that_the_link_finds_taken_when_it_goes_up(host: Host, box: Box) -> None:
    """So it is with the kernel's device, which has its port from then on."""
    box.settle()
    box.netlink.refuse = lambda request: errno.EADDRINUSE
    box.plan(interface())
    (error,) = box.step()
    assert "UDP port 51820 is taken by" in error and "EADDRINUSE" in error
    box.netlink.refuse = lambda request: 0
    box.now += 1
    assert box.step() == []
    assert ",UP" in link(host)


def test_wireguard_go_that_is_down_for_want_of_a_port_comes_up(host: Host, box: Box) -> None:
    """Told a port while its link was down, it finds it taken when the link goes up: nobody hears of that."""
    box.plan(interface())
    box.settle()
    assert box.interface.device is not None
    box.interface.device.configure(None, 51999)
    real = ports.is_free
    seen = []

    def is_free(port: int) -> bool:
        seen.append(port)
        return True if len(seen) < 3 else real(port)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ports, "is_free", is_free)
        box.interface.load()
        before = box.netlink.sent
        assert box.step() == []
        assert box.netlink.sent - before == 2, "down and up"
    assert ",UP" in link(host)
    eventually(lambda: not ports.is_unheard_of(51820), what="wireguard-go hears of down and up by itself")


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


def test_a_fight_over_the_link_goes_on_while_key_and_port_are_fought_over(box: Box) -> None:
    """They come first, so that the link is not even tried meanwhile."""
    box.plan(interface())
    box.settle()
    name = box.config.interface

    def meddle() -> None:
        subprocess.run(["wg", "set", name, "listen-port", "51999"], check=True)
        ip(f"link set {name} mtu 1300")
        box.interface.load()
        assert box.step() == []

    for _ in range(MANY):
        meddle()
    assert box.interface.fights.going_on(0.0) == {SETTINGS, LINK}
    box.now = 0.5
    meddle()
    assert "mtu 1300" in lines(f"link show {name}")[0] and box.interface.state.listen_port == 51999
    assert box.interface.fights.lost(SETTINGS, since=0.5) and box.interface.fights.lost(LINK, since=0.5)
