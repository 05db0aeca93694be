"""The firewall at the worker's end, with the worker as a process."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from kilo.model.plan import Firewall, PlanItem, SetEntry
from kilo.netctl.firewall import reconciler
from kilo.worker import Context
from tests.feeding import running
from tests.integration.netctl.firewall.hosts import held
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
