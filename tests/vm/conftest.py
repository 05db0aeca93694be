"""Hands the tests of ``inside`` to a virtual machine, and reports them as if they ran here."""

from __future__ import annotations

import compileall
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm import INSIDE
from tests.vm.machine import REPOSITORY, Machine, MachineFailed

HERE = Path(__file__).parent / "inside"
SECONDS = 600
"""For a test inside, unless it says otherwise: emulated Python is some twenty times slower."""

FIGURE = "figure"
"""The name of a property of a test inside, recorded by ``record_property``, that is shown at the end."""

_MACHINE = pytest.StashKey[Machine]()
_FIGURES = pytest.StashKey[dict[str, None]]()


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
        for package in ("kilo", "tests"):  # inside, where files cannot be written, every process would
            compileall.compile_dir(REPOSITORY / package, quiet=2)
        tests = [other.nodeid for other in item.session.items if other.path.is_relative_to(HERE)]
        config.stash[_MACHINE] = Machine(tests, directory)
    return config.stash[_MACHINE]


def reports(item: pytest.Item, machine: Callable[[pytest.Item], Machine]) -> Iterator[pytest.TestReport]:
    """What the machine reports of ``item``; where it cannot, a failure that says why.

    What is skipped inside fails here: the machine has all that the tests need, or is no good.
    """
    start = time.monotonic()
    try:
        for data in machine(item).reports(item.nodeid):
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            if report.skipped:
                report.outcome, report.longrepr = "failed", f"skipped in the machine: {report.longrepr}"
            yield report
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
        for report in reports(item, machine_of):
            figures = item.config.stash.setdefault(_FIGURES, dict[str, None]())
            figures |= {
                f"{item.name}: {text}": None for name, text in report.user_properties if name == FIGURE
            }
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        if figures := config.stash.get(_FIGURES, None):
            terminalreporter.section("measured in the virtual machine")
            for line in figures:
                terminalreporter.write_line(line)

    def pytest_unconfigure(config: pytest.Config) -> None:
        if _MACHINE in config.stash:
            config.stash[_MACHINE].close()
