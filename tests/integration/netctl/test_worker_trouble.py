"""What the worker does about a host that misbehaves: programs that stand still, or that fight it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from kilo.model.plan import Rule
from tests.feeding import eventually, running, within
from tests.integration.netctl.hosts import ip, stopped
from tests.integration.netctl.worker_box import DESTINATIONS, PLAN_3, Box, Impatient, Steady
from tests.unit.netctl.plans import key, mesh, node


def longest_silence(box: Box, seconds: float) -> float:
    """The longest time without a heartbeat within so many seconds.

    A look that comes late counts for a short while only: then all stood still, not just the worker.
    """
    longest = silence = watched = 0.0
    looked, beat = time.monotonic(), box.state().beat
    while watched < seconds:
        time.sleep(0.02)
        now, state = time.monotonic(), box.state()
        step, looked = min(now - looked, 0.1), now
        watched += step
        silence += step
        longest = max(longest, silence)
        if state.beat != beat:
            silence, beat = 0.0, state.beat
    return longest


@pytest.mark.timing
def test_heartbeats_go_on_while_wireguard_go_stands_still(box: Box) -> None:
    with running("netctl", Steady, box.config()):
        box.plan(PLAN_3)
        box.whole()
        with stopped(box.host.programs()[0]):
            more = [item for n in range(4, 44) for item in node(n)]
            box.plan({item.key: item for item in more})
            assert longest_silence(box, 4.0) < 2.5
            failing = box.state().failing
            assert "does not answer" in failing["wireguard"].message
            assert len([key for key in failing if key.startswith("peer/")]) == 0, "no peer is to blame"
        within(3.0, lambda: len(box.peers()) == 43)
        within(3.0, lambda: not box.state().failing and not box.state().gauges["unapplied_since"])
        assert "stopped" not in box.state().info


@pytest.mark.timing
def test_a_device_that_stands_still_between_plans_stops_the_data_plane(box: Box) -> None:
    with box.worker():
        box.plan(PLAN_3)
        box.applied()
        began = time.time()
        with stopped(box.host.programs()[0]):
            within(4.0, lambda: "does not answer" in box.state().info.get("stopped", ""))
            assert began - 1 < box.state().gauges["unapplied_since"] < time.time() + 1
            assert box.state().gauges["applied_generation"] == 1
        within(3.0, lambda: "stopped" not in box.state().info)
        assert box.state().gauges["unapplied_since"] == 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.timing
def test_a_device_that_stands_still_in_the_middle_of_a_plan_is_waited_for(box: Box) -> None:
    """When some of the peers are there, and nothing has been said of them yet."""
    with running("netctl", Steady, box.config()) as worker:
        box.plan(mesh(1))
        box.applied()
        more = [item for n in range(2, 1500) for item in node(n)]
        box.plan({item.key: item for item in more})
        eventually(lambda: len(box.peers()) > 1)
        with stopped(box.host.programs()[0]):
            within(4.0, lambda: "does not answer" in box.state().info.get("stopped", ""))
            assert worker.process.pid is not None
            before, began = cpu_seconds(worker.process.pid), time.monotonic()
            beat = box.state().beat
            eventually(lambda: box.state().beat >= beat + 3)
            used, passed = cpu_seconds(worker.process.pid) - before, time.monotonic() - began
            assert used < passed / 4
        eventually(lambda: len(box.peers()) == 1499, 20.0)


def test_a_start_while_wireguard_go_stands_still(box: Box) -> None:
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.whole()
        worker.end(signal.SIGKILL)
    with stopped(box.host.programs()[0]), running("netctl", Steady, box.config()) as worker:
        eventually(lambda: (s := box.bus.state("netctl")) and s.pid == worker.process.pid and s.failing)
        assert longest_silence(box, 3.0) < 1.8
        assert "does not answer" in box.state().failing["interface"].message
        assert box.state().phase == "starting"
        os.kill(box.host.programs()[0], signal.SIGCONT)
        box.applied(worker.process.pid)
        assert box.peers().keys() == {key(1), key(2), key(3)}


@contextlib.contextmanager
def opponents(commands: Iterable[str], period: float = 0.02) -> Iterator[None]:
    """Other programs on the host, each of which does one thing again and again."""
    loops = " ".join(f"(while :; do {command}; sleep {period}; done) &" for command in commands)
    with subprocess.Popen(
        ["sh", "-c", f"{loops} wait"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


RULE = Rule(1107, dst="10.1.0.77/32")
FOUGHT = {
    "route/0/10.64.1.0/24": "ip route del 10.64.1.0/24",
    "rule/1107//10.1.0.77/32/": "ip rule del to 10.1.0.77 priority 1107",
    "address/{name}/10.4.9.9/16": "ip addr add 10.4.9.9/16 dev {name}",
    "interface/link": "ip link set {name} mtu 1300",
    "interface/settings": "wg set {name} listen-port 51999",
    f"peer/{key(2)}": f"wg set {{name}} peer {key(2)} remove",
}


class Watchful(Impatient):
    """Sees soon what it is not told of, and so that it is fought over."""

    poll_period = 0.1


def test_who_takes_the_address_away_again_and_again_is_not_raced(box: Box) -> None:
    """By itself: with the address the kernel takes routes."""
    name = box.host.interface
    with box.worker():
        box.plan(PLAN_3)
        box.applied()
        with opponents([f"ip addr del 10.4.0.1/16 dev {name}"]):
            eventually(lambda: f"fight/address/{name}/10.4.0.1/16" in box.state().failing, 20.0)
        eventually(lambda: not box.state().failing, 20.0, "that it is over")
        eventually(lambda: "10.4.0.1/16" in ip("addr") and box.routes() == DESTINATIONS)


@pytest.mark.timing
def test_a_fight_over_what_is_no_longer_wanted_is_over(box: Box) -> None:
    key_of_route = "route/0/10.64.1.0/24"
    with box.worker():
        box.plan(PLAN_3)
        box.applied()
        with opponents([FOUGHT[key_of_route]]):
            eventually(lambda: f"fight/{key_of_route}" in box.state().failing, 20.0)
            eventually(lambda: "10.64.1.0/24" not in box.routes())
            box.plan({}, (key_of_route,))
        within(2.0, lambda: not box.state().gauges["unapplied_since"])
        eventually(lambda: not box.state().failing, 10.0, "that it is over")


@pytest.mark.timing
def test_who_undoes_our_work_again_and_again_is_not_raced(box: Box) -> None:
    name = box.host.interface
    fights = {f"fight/{key.format(name=name)}" for key in FOUGHT}

    def quiet() -> bool:
        """Whether three seconds passed with no more repairs than the backoff allows.

        If they were more than three, with one more of each for every two seconds, which is its limit.
        """
        beat = box.state().beat
        began = time.monotonic()
        eventually(lambda: box.state().beat > beat)
        repairs = box.state().gauges["repairs_total"]
        time.sleep(3.0)
        more = box.state().gauges["repairs_total"] - repairs
        return more <= (4 + max(0.0, time.monotonic() - began - 3.2) / 2) * len(FOUGHT)

    with running("netctl", Watchful, box.config()) as worker:
        box.plan({**PLAN_3, RULE.key: RULE})
        box.applied()
        with opponents(command.format(name=name) for command in FOUGHT.values()):
            eventually(lambda: fights <= box.state().failing.keys(), 20.0)
            assert box.state().gauges["fights"] >= len(FOUGHT)
            assert quiet()
            assert "somebody keeps undoing" in box.state().failing[min(fights)].message
        eventually(lambda: not box.state().failing, 20.0, "that it is over")
        assert box.state().gauges["fights"] == 0
        assert box.state().errors["fight"] == len(FOUGHT)
        for fight in fights:
            told = [line["level"] for line in worker.log if line.get("failing") == fight]
            assert told == ["error", "info"], "said once, and its end"
        eventually(lambda: len(box.peers()) == 3 and box.routes() >= DESTINATIONS)
        assert "10.4.0.1/16" in ip("addr") and "10.4.9.9" not in ip("addr")
        assert "mtu 1420" in ip(f"link show {name}") and "10.1.0.77" in ip("rule")
        ip("route del 10.64.1.0/24")
        within(1.0, lambda: box.routes() >= DESTINATIONS, "one repair is immediate again")
