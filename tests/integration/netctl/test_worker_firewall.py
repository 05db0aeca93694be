"""The firewall at the worker's end, with the worker as a process."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from pathlib import Path

import pytest

from kilo.model.plan import Firewall, PlanItem, SetEntry
from kilo.netctl.firewall import reconciler
from kilo.netctl.firewall.choice import Kind
from kilo.worker import Context
from tests.feeding import eventually, running
from tests.integration.netctl.firewall.hosts import PROGRAMS, held
from tests.integration.netctl.worker_box import PLAN_3, Box, Impatient

MORE: list[PlanItem] = [
    Firewall(ipip_guard=False, forward=False),
    SetEntry("masquerade_from", "10.2.0.0/24"),
]
PLAN = PLAN_3 | {item.key: item for item in MORE}


class Brief(Impatient):
    """Does not wait for long at its end."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        reconciler.CLEAN_UP_PATIENCE = 0.3


def test_a_worker_that_could_not_remove_its_rules_does_not_end_well(box: Box, xtables_lock: Path) -> None:
    box.plan(PLAN)
    with running("netctl", Brief, box.config(firewall="legacy")) as worker:
        box.applied()
        with held(xtables_lock):
            assert worker.end() == 1
        (line,) = [line["msg"] for line in worker.log if line["msg"].startswith("not all was cleaned up")]
        assert f"another program holds {xtables_lock}" in line


def test_a_worker_that_had_to_wait_ends_well(box: Box, xtables_lock: Path) -> None:
    box.plan(PLAN)
    with box.worker(firewall="legacy") as worker, contextlib.ExitStack() as stack:
        box.applied()
        stack.enter_context(held(xtables_lock))
        ending = threading.Timer(1.0, stack.close)
        ending.start()
        assert worker.end() == 0
        ending.join()


@pytest.fixture(params=["legacy", "nftables"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return "legacy" if request.param == "legacy" else "nftables"


def run(*command: str) -> None:
    """As another program of this host."""
    subprocess.run(command, check=True)


def test_forward_that_drops_pods_is_failing_until_rules_accept_them(box: Box, kind: Kind) -> None:
    pods = Firewall(ipip_guard=False, forward=False, pods="10.2.0.0/24")
    program = PROGRAMS[kind][0]
    run(program, "-P", "FORWARD", "DROP")
    box.plan(PLAN | {pods.key: pods})
    # Nothing is heard of a change in a legacy table: it is seen at the next resync.
    with box.worker(firewall=kind, resync_period=0.5) as worker:
        failure = eventually(lambda: box.state().failing.get("forward"))
        assert "drops what pods send (from 10.2.0.0/24)" in failure.message
        assert "give --iptables-forward-rules, or accept it there" in failure.message
        assert [line for line in worker.log if line.get("failing") == "forward"]
        for side in ("-s", "-d"):
            run(program, "-I", "FORWARD", side, "10.2.0.0/24", "-j", "ACCEPT")
        eventually(lambda: "forward" not in box.state().failing)


def test_forward_with_rules_of_ours_does_not_fail(box: Box, kind: Kind) -> None:
    wanted: list[PlanItem] = [
        Firewall(ipip_guard=False, forward=True, pods="10.2.0.0/24"),
        SetEntry("forward_accept_from", "10.2.0.0/24"),
        SetEntry("forward_accept_to", "10.2.0.0/24"),
    ]
    run(PROGRAMS[kind][0], "-P", "FORWARD", "DROP")
    box.plan(PLAN | {item.key: item for item in wanted})
    with box.worker(firewall=kind) as worker:
        assert "forward" not in box.applied().failing
        assert not [line for line in worker.log if line.get("failing") == "forward"]
