"""Fixtures of the tests in the virtual machine."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.integration.netctl.conftest import wired as wired
from tests.integration.netctl.hosts import Host
from tests.lab.mesh import Mesh
from tests.vm.inside.places import complaints


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the agents of the mesh warned of."""
    report = yield
    mesh = getattr(item, "funcargs", {}).get("hosts")
    if report.failed and isinstance(mesh, Mesh):
        report.sections.append(("Warnings of the agents", complaints(mesh)))
    return report


@pytest.fixture
def host() -> Iterator[Host]:
    """A namespace that the test's thread is in."""
    made = Host()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's hosts log to."""
    return tmp_path_factory.mktemp("logs")
