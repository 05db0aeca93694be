"""The firewall at the worker's end, with the worker as a process."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.model.plan import Firewall, PlanItem, SetEntry
from tests.unit.netctl.worker_box import PLAN_3, Box


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the xtables lock."""
    path = tmp_path / "xtables.lock"
    path.touch()
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    return path


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """As by another program."""
    with file.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield


MORE: list[PlanItem] = [
    Firewall(ipip_guard=False, forward=False),
    SetEntry("masquerade_from", "10.2.0.0/24"),
]
PLAN = PLAN_3 | {item.key: item for item in MORE}


def test_a_worker_that_could_not_remove_its_rules_does_not_end_well(box: Box, file: Path) -> None:
    box.plan(PLAN)
    with box.worker(firewall="legacy") as running:
        box.applied()
        with held(file):
            assert running.end() == 1
        (line,) = [line["msg"] for line in running.log if line["msg"].startswith("not all was cleaned up")]
        assert f"another program holds {file}" in line


def test_a_worker_that_had_to_wait_ends_well(box: Box, file: Path) -> None:
    box.plan(PLAN)
    with box.worker(firewall="legacy") as running, contextlib.ExitStack() as stack:
        box.applied()
        stack.enter_context(held(file))
        ending = threading.Timer(1.0, stack.close)
        ending.start()
        assert running.end() == 0
        ending.join()
