"""A pytest plugin: a test of several processes that fails may be run once more.

The kernel and other processes decide when such a test sees what it waits for, so a single failure may be
the machine's. The summary names every test that needed a second run; more than ``MOST`` of them fail the
whole run, since that is a fault of the project and not of the machine.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

MARKS = ("integration", "e2e")
"""Tests with one of these marks may be run again. A unit test that fails once has failed."""
MOST = 3


def pytest_collection_modifyitems(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    for item in items:
        if any(item.get_closest_marker(mark) for mark in MARKS):
            item.add_marker(pytest.mark.flaky(reruns=1))


def rerun_tests(reporter: pytest.TerminalReporter) -> list[str]:
    """The node ids of the tests that were run again, in alphabetical order."""
    return sorted({report.nodeid for report in reporter.stats.get("rerun", ())})


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and len(rerun_tests(reporter)) > MOST and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tests = rerun_tests(terminalreporter)
    if not tests:
        return
    terminalreporter.section("run again after a failure")
    for test in tests:
        terminalreporter.write_line(test)
    if len(tests) > MOST:
        terminalreporter.write_line(f"{len(tests)} tests were run again; more than {MOST} fail the run")
