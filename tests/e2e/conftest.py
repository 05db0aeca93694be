"""What the end-to-end tests share: a machine that can run them, and directories for logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.needs import missing


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Fails, with what to do about it, where the lab cannot run."""
    lines = missing()
    assert not lines, "\n".join(lines)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Where a module's hosts log to; pytest keeps it, and prints it with a failure."""
    directory = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
    print(f"logs of the hosts: {directory}")
    return directory
