"""Fixtures of the tests in the virtual machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.netctl.hosts import Host


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
