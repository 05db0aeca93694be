"""The firewall at the worker's end, with the worker as a process."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from kilo.model.plan import Firewall, PlanItem, SetEntry
from tests.unit.netctl.firewall.hosts import held
from tests.unit.netctl.worker_box import PLAN_3, Box

MORE: list[PlanItem] = [
    Firewall(ipip_guard=False, forward=False),
    SetEntry("masquerade_from", "10.2.0.0/24"),
]
PLAN = PLAN_3 | {item.key: item for item in MORE}


def test_a_worker_that_could_not_remove_its_rules_does_not_end_well(box: Box, xtables_lock: Path) -> None:
    box.plan(PLAN)
    with box.worker(firewall="legacy") as running:
        box.applied()
        with held(xtables_lock):
            assert running.end() == 1
        (line,) = [line["msg"] for line in running.log if line["msg"].startswith("not all was cleaned up")]
        assert f"another program holds {xtables_lock}" in line


def test_a_worker_that_had_to_wait_ends_well(box: Box, xtables_lock: Path) -> None:
    box.plan(PLAN)
    with box.worker(firewall="legacy") as running, contextlib.ExitStack() as stack:
        box.applied()
        stack.enter_context(held(xtables_lock))
        ending = threading.Timer(1.0, stack.close)
        ending.start()
        assert running.end() == 0
        ending.join()
