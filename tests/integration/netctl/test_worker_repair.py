"""What somebody takes away is back within a second, also where the kernel says nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kilo.model.plan import Route, Rule, Tunnel
from kilo.netctl.worker import NetctlWorker
from tests.feeding import eventually, running, within
from tests.integration.netctl.faulty import Interrupted
from tests.integration.netctl.hosts import ip, lines
from tests.integration.netctl.worker_box import DESTINATIONS, OURS, PLAN_3, Box
from tests.unit.netctl.plans import key

RULE = Rule(1107, dst="10.1.0.77/32")
BY_TUNNEL = Route("10.64.9.0/24", "tunnel", "10.1.0.77", onlink=True)
BY_PRIVATE = Route("10.64.8.0/24", "private", "10.1.0.78", onlink=True)


@pytest.mark.timing
def test_a_rule_is_back(box: Box) -> None:
    with box.worker():
        box.plan({**PLAN_3, RULE.key: RULE})
        box.applied()
        for damage in ("del to 10.1.0.77 priority 1107", "flush"):
            ip(f"rule {damage}")
            within(1.0, lambda: "to 10.1.0.77 lookup 1107" in ip("rule"), damage)


@pytest.mark.timing
def test_the_wireguard_device_is_back_with_all_that_was_in_it(box: Box) -> None:
    name = box.host.interface

    def whole() -> bool:
        return len(box.peers()) == 3 and box.routes() == DESTINATIONS and "10.4.0.1/16" in ip("addr")

    with box.worker():
        box.plan(PLAN_3)
        box.applied()
        time.sleep(1.0)
        ip(f"link del {name}")
        within(1.0, whole, "the device was deleted")
        time.sleep(2.0)
        os.kill(box.host.programs()[0], signal.SIGKILL)
        within(1.0, whole, "its program was killed")
        eventually(lambda: box.state().gauges["repairs_total"] >= 2 and not box.state().failing)


@pytest.mark.timing
def test_a_device_that_goes_just_before_all_is_read_again_is_back(box: Box) -> None:
    """The pass that is to make another one begins with reading what there is of the old one."""
    with box.worker(resync_period=0.3):
        box.plan(PLAN_3)
        box.applied()
        for _ in range(2):
            pid = box.state().pid
            os.kill(pid, signal.SIGSTOP)
            ip(f"link del {box.host.interface}")
            time.sleep(0.5)  # the resync is due, and so are the events
            os.kill(pid, signal.SIGCONT)
            within(3.0, lambda: len(box.peers()) == 3 and box.routes() == DESTINATIONS)
            eventually(lambda: not box.state().failing)


@pytest.mark.timing
def test_a_peer_that_was_changed_by_hand_is_as_planned_within_a_second(box: Box) -> None:
    """With the worker as it is in use: the others look more often."""
    before = {}
    with running("netctl", NetctlWorker, box.config()):
        box.plan(PLAN_3)
        box.whole()
        before = box.peers()
        wg = ["wg", "set", box.host.interface, "peer"]
        subprocess.run([*wg, key(1), "remove"], check=True)
        subprocess.run([*wg, key(2), "allowed-ips", "10.99.0.0/16"], check=True)
        subprocess.run([*wg, key(9), "allowed-ips", "10.64.3.0/24"], check=True)
        within(1.0, lambda: box.peers() == before)


@pytest.mark.timing
def test_a_tunnel_device_of_others_may_go_and_come_back_as_another(box: Box) -> None:
    with box.worker(compatibility="flannel"):
        box.plan({**PLAN_3, "tunnel": Tunnel("flannel", ""), BY_TUNNEL.key: BY_TUNNEL})
        eventually(lambda: (f := box.state().failing.get("tunnel")) and "waiting for Flannel" in f.message)
        line = f"10.64.9.0/24 via 10.1.0.77 dev flannel.1 {OURS} onlink"
        for _ in range(2):
            ip("link add flannel.1 type veth peer name far")
            ip("link set far up")
            ip("link set flannel.1 up")
            within(1.0, lambda: line in lines("route"), "it came")
            ip("link set flannel.1 down")
            eventually(lambda: line not in lines("route"))
            ip("link set flannel.1 up")
            within(1.0, lambda: line in lines("route"), "it was down")
            ip("link del flannel.1")
            eventually(lambda: "tunnel" in box.state().failing)


@pytest.mark.timing
def test_routes_that_the_kernel_drops_without_a_word_are_back(box: Box) -> None:
    """It says nothing of those that go with a link that is set down, or with an address."""
    wanted = DESTINATIONS | {"10.64.8.0/24"}
    with box.worker():
        box.plan({**PLAN_3, BY_PRIVATE.key: BY_PRIVATE})
        eventually(lambda: box.routes() == wanted)
        for damage in (
            ("link set eth0 down", "link set eth0 up"),
            ("addr del 10.1.0.10/24 dev eth0", "addr add 10.1.0.10/24 dev eth0"),
            (f"link set {box.host.interface} down",),
            (f"addr flush dev {box.host.interface}",),
        ):
            for command in damage:
                ip(command)
                time.sleep(0.1)
            within(1.0, lambda: box.routes() == wanted, damage[-1])


@pytest.mark.timing
def test_routes_do_not_wait_for_an_address_that_was_away_for_a_moment(box: Box) -> None:
    """Put while it is away, they fail; that is no reason to wait once it is there."""
    with running("netctl", Interrupted, box.config()) as worker:
        box.plan(PLAN_3)
        box.applied()
        away = Path(box.config().state_dir) / "away"
        away.touch()
        ip(f"link set {box.host.interface} mtu 1300")
        eventually(lambda: not away.exists(), what="it has come back in the same pass")
        within(0.5, lambda: box.routes() == DESTINATIONS)
        assert "Invalid prefsrc address" in "".join(worker.messages("error") + worker.messages("warn"))
