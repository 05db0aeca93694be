"""Hands the tests of ``inside`` to a virtual machine, and reports them as if they ran here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import INSIDE
from tests.vm.machine import Machine, MachineFailed

HERE = Path(__file__).parent / "inside"
SECONDS = 300
"""For a test inside, unless it says otherwise: emulated Python is some twenty times slower."""

_MACHINE = pytest.StashKey[Machine]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.vm)
            if not INSIDE:
                item.add_marker(pytest.mark.timeout(0), append=False)  # the machine has limits of its own
            elif item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(SECONDS))


def machine_of(item: pytest.Item) -> Machine:
    """The session's machine, which is booted for all tests of ``inside`` when the first one is due."""
    config = item.config
    if _MACHINE not in config.stash:
        factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined]
        directory = factory.mktemp("vm")
        tests = [other.nodeid for other in item.session.items if other.path.is_relative_to(HERE)]
        config.stash[_MACHINE] = Machine(tests, directory)
    return config.stash[_MACHINE]


def reports(item: pytest.Item) -> Iterator[pytest.TestReport]:
    """What the machine reports of ``item``; where it cannot, a failure that says why."""
    start = time.monotonic()
    try:
        for data in machine_of(item).reports(item.nodeid):
            yield item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    except MachineFailed as e:
        yield pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=str(e),
            when="call",
            duration=time.monotonic() - start,
        )


if not INSIDE:

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
        if not item.path.is_relative_to(HERE):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_unconfigure(config: pytest.Config) -> None:
        if _MACHINE in config.stash:
            config.stash[_MACHINE].close()
