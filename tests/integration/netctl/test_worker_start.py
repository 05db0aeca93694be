"""What a start of the worker does to a host where an earlier run left everything as planned: nothing."""

from __future__ import annotations

import subprocess
import time

from kilo.worker import Context
from tests.feeding import eventually, running
from tests.integration.netctl.worker_box import PLAN_3, Box, Impatient


class Waiting(Impatient):
    """Its loop runs before ``start``, as it does while a parent makes it wait."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        context.loop.run_for(0.7)


def test_a_plan_that_comes_before_the_start_touches_nothing(box: Box) -> None:
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.whole()
        box.applied()
        worker.end(9)
    with subprocess.Popen(
        ["ip", "monitor", "address", "route", "link"], stdout=subprocess.PIPE, text=True
    ) as monitor:
        try:
            with running("netctl", Waiting, box.config()) as worker:
                box.applied(worker.process.pid)
                eventually(lambda: "ready" in [line["msg"] for line in worker.log])
                time.sleep(0.3)
                assert not [line for line in worker.log if "failing" in line]
                assert not box.state().gauges["repairs_total"]
                worker.end(9)
        finally:
            monitor.terminate()
        assert monitor.stdout
        assert [line for line in monitor.stdout if box.host.interface in line] == []
