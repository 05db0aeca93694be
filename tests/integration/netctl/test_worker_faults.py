"""What the worker does where the kernel refuses something: it costs its own object, and is tried again."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kilo.bus import HOST
from kilo.model.host import Failure
from kilo.model.plan import Rule, Summary
from kilo.netctl.netlink.messages import (
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
)
from tests.feeding import Running, eventually, running, within
from tests.integration.netctl.faulty import Deaf, DeafAndHasty, Faulty, Inattentive
from tests.integration.netctl.hosts import ip
from tests.integration.netctl.worker_box import DESTINATIONS, PLAN_3, Box
from tests.unit.netctl.plans import key

REPOSITORY = Path(__file__).resolve().parents[3]


def faulty(box: Box, kind: int, number: int, spare: int = 0) -> AbstractContextManager[Running]:
    """The worker on a kernel with faults."""
    fault(box, kind, number, spare)
    return running("netctl", Faulty, box.config())


def fault(box: Box, kind: int, number: int, spare: int = 0) -> None:
    """The kernel has a fault from now on, if it is one that a ``Faulty`` worker sees."""
    faults = Path(box.config().state_dir) / "faults"
    faults.parent.mkdir(exist_ok=True)
    faults.write_text(f"{kind} {number} {spare}")


def failing(box: Box, count: int) -> dict[str, Failure]:
    """What fails, once it is so many things."""
    found: dict[str, Failure] = {}

    def so_many() -> bool:
        nonlocal found
        found = box.state().failing
        return len(found) == count

    eventually(so_many)
    return found


def mended(box: Box) -> None:
    """The kernel has no faults from now on."""
    (Path(box.config().state_dir) / "faults").unlink()


def status(box: Box) -> str:
    """What ``kg status`` prints."""
    command = [sys.executable, "-m", "kilo", "status", "--run-dir", box.config().run_dir]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY).stdout


def test_a_full_routing_table(box: Box) -> None:
    with faulty(box, RTM_NEWROUTE, errno.ENOSPC, spare=4) as worker:
        began = time.monotonic()
        box.plan(PLAN_3)
        eventually(lambda: len(box.routes()) == 4 and len(box.peers()) == 3)
        eventually(lambda: all(name.startswith("route/0/10.") for name in failing(box, 2)))
        failed = failing(box, 2)
        before = box.state().errors["apply"]
        assert {failure.message.rpartition(": ")[2] for failure in failed.values()} == {
            "No space left on device (ENOSPC)"
        }
        assert "10.4.0.1/16" in ip("addr"), "the rest is applied"
        assert {line["failing"] for line in worker.log if "ENOSPC" in line["msg"]} == failed.keys()
        printed = status(box)
        assert all(f"! netctl: {name}: No space left" in printed for name in failed)
        gauges = box.state().gauges
        assert "applied_generation" not in gauges and time.time() - gauges["unapplied_since"] < 10
        eventually(lambda: box.state().errors["apply"] >= before + 2, what="both are tried again")
        time.sleep(max(0.0, began + 6 - time.monotonic()))
        errors, tries = box.state().errors["apply"], 1 + math.log2(time.monotonic() - began + 1)
        assert errors <= 2 * (tries + 2), "two routes, after 1, 2, 4 s, and when links change"
        mended(box)
        box.whole()
        failing(box, 0)
        assert box.applied().gauges["unapplied_since"] == 0


RULE = Rule(1107, dst="10.1.0.77/32")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (RTM_NEWRULE, RULE.key),
        (RTM_NEWADDR, "address/{name}/10.4.0.1/16"),
        (RTM_NEWLINK, "interface/link"),
    ],
)
def test_a_kernel_that_is_busy(box: Box, kind: int, name: str) -> None:
    name = name.format(name=box.host.interface)
    with faulty(box, kind, errno.EBUSY, spare=0 if kind != RTM_NEWLINK else 1) as worker:
        box.plan({**PLAN_3, RULE.key: RULE})
        eventually(lambda: name in box.state().failing)
        assert box.state().failing[name].message.endswith("Device or resource busy (EBUSY)")
        eventually(lambda: len(box.peers()) == 3)
        if kind != RTM_NEWLINK:
            eventually(lambda: box.routes() == DESTINATIONS)
        assert [line for line in worker.log if line.get("failing") == name and "EBUSY" in line["msg"]]
        mended(box)
        box.applied()
        assert box.routes() == DESTINATIONS and "10.1.0.77" in ip("rule") and "10.4.0.1/16" in ip("addr")
        failing(box, 0)


@pytest.mark.timing
def test_events_that_were_lost_are_made_up_for_by_reading(box: Box, tmp_path: Path) -> None:
    burst = tmp_path / "burst"
    lines = [f"route {verb} 10.99.{n}.0/24 dev eth0" for n in range(200) for verb in ("add", "del")]
    with running("netctl", DeafAndHasty, box.config()) as worker:
        box.plan(PLAN_3)
        box.whole()
        half = len(lines) // 2
        damage = ["route del 10.64.2.0/24", f"addr del 10.4.0.1/16 dev {box.host.interface}"]
        burst.write_text("\n".join([*lines[:half], *damage, *lines[half:]]) + "\n")
        assert worker.process.pid is not None
        os.kill(worker.process.pid, signal.SIGSTOP)
        subprocess.run(["ip", "-batch", str(burst)], check=True)
        os.kill(worker.process.pid, signal.SIGCONT)
        within(1.5, lambda: box.routes() == DESTINATIONS and "10.4.0.1/16" in ip("addr"))
        eventually(lambda: box.state().errors.get("monitor", 0) >= 1)
        assert worker.messages("warn").count("events of the kernel were lost; reading everything again") >= 1
        ip("route del 10.64.1.0/24")
        within(1.0, lambda: box.routes() == DESTINATIONS, "and it hears again")


@pytest.mark.timing
def test_events_that_are_lost_all_the_time_are_made_up_for_once_a_second(box: Box, tmp_path: Path) -> None:
    burst = tmp_path / "burst"
    lines = [f"route {verb} 10.99.{n}.0/24 dev eth0" for n in range(200) for verb in ("add", "del")]
    burst.write_text("\n".join(lines) + "\n")
    with running("netctl", Deaf, box.config()) as worker:
        box.plan(PLAN_3)
        box.whole()

        def readings() -> int:
            return worker.messages("warn").count("events of the kernel were lost; reading everything again")

        began, before = time.monotonic(), readings()
        while time.monotonic() < began + 3:
            subprocess.run(["ip", "-batch", str(burst)], check=True)
        lost = readings() - before
        assert 1 <= lost <= time.monotonic() - began + 1, "once a second"
        ip("route del 10.64.1.0/24")
        within(2.0, lambda: box.routes() == DESTINATIONS)


def test_a_name_that_is_taken_by_another_kind_of_device(box: Box) -> None:
    name = box.host.interface
    ip(f"link add {name} type bridge")
    with box.worker() as worker:
        box.plan(PLAN_3)
        reason = (
            f"{name}: an interface of this name exists, is of the kind bridge and not WireGuard's: left alone"
        )
        eventually(lambda: (f := box.state().failing.get("interface")) and f.message == reason)
        eventually(lambda: box.state().info.get("stopped") == reason)
        assert worker.messages("error").count(reason) == 1 and box.state().errors["apply"] >= 1
        assert f"! netctl: interface: {reason}" in status(box)
        assert box.state().phase == "starting"
        ip(f"link del {name}")
        box.applied()
        assert box.routes() == DESTINATIONS and box.peers().keys() == {key(n) for n in (1, 2, 3)}
        eventually(lambda: "stopped" not in box.state().info and not box.state().failing)


def test_one_object_that_drifts_and_cannot_be_repaired_leaves_the_plan_applied(box: Box) -> None:
    """A new plan after that is another matter: it is late until it has been applied in full."""
    with box.worker():
        box.plan(PLAN_3)
        box.applied()
        ip("route replace 10.64.2.0/24 via 10.1.0.99 dev eth0")
        eventually(lambda: "route/0/10.64.2.0/24" in box.state().failing)
        gauges = box.state().gauges
        assert gauges["applied_generation"] == 1 and gauges["unapplied_since"] == 0
        box.plan({"summary": Summary(2, "here", True, 4, 0, 4)})
        eventually(lambda: box.state().gauges["planned_generation"] == 2)
        gauges = box.state().gauges
        assert gauges["applied_generation"] == 1 and 0 < time.time() - gauges["unapplied_since"] < 5
        ip("route del 10.64.2.0/24")
        eventually(lambda: box.state().gauges["applied_generation"] == 2)
        assert box.state().gauges["unapplied_since"] == 0


def test_a_host_that_cannot_be_read_fails_until_it_can_be(box: Box) -> None:
    """Whatever else is done meanwhile: it is no plan's fault, and no plan's merit."""
    with running("netctl", Faulty, box.config(resync_period=0.1)):
        box.plan(PLAN_3)
        box.applied()
        fault(box, RTM_GETLINK, errno.ENOBUFS)
        eventually(lambda: "host" in box.state().failing)
        beat = box.state().beat
        seen: list[str] = []
        while len(seen) < 15:
            if (state := box.state()).beat > beat:
                beat = state.beat
                seen.append(state.failing.get("host", Failure("", 0)).message)
            time.sleep(0.02)
        assert seen == ["host: No buffer space available (ENOBUFS)"] * 15
        mended(box)
        eventually(lambda: not box.state().failing)


def test_routes_that_could_not_be_read_before_the_plan_are_no_trouble_after_it(box: Box) -> None:
    fault(box, RTM_GETROUTE, errno.ENOBUFS, spare=2)
    with running("netctl", Faulty, box.config()):
        eventually(lambda: "routes" in box.state().failing)
        mended(box)
        box.plan(PLAN_3)
        box.applied()
        eventually(lambda: not box.state().failing)


@pytest.mark.timing
def test_a_default_route_is_found_by_the_next_reading_of_everything(box: Box) -> None:
    with running("netctl", Inattentive, box.config(resync_period=0.5)):
        facts = box.follow(HOST)
        eventually(lambda: "host" in facts and facts["host"].default_link == "eth0")
        box.host.wire("eth1", "10.3.0.10/24")
        ip("route replace default via 10.3.0.1")
        within(3.0, lambda: facts["host"].default_link == "eth1")
