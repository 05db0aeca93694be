"""Fixtures of netctl's tests: a host, and WireGuard on it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.feeding import eventually
from tests.integration.netctl.far_end import FarEnd
from tests.integration.netctl.firewall.hosts import Hosts, hosts
from tests.integration.netctl.hosts import SOCKETS, Host
from tests.integration.netctl.worker_box import Box


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def wired() -> Iterator[Hosts]:
    """A host between a pod and the outside."""
    with hosts() as made:
        yield made


@pytest.fixture
def wireguard_go(host: Host) -> Iterator[str]:
    """An interface served by wireguard-go; its name."""
    process = subprocess.Popen(
        ["wireguard-go", "-f", host.interface], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    eventually((SOCKETS / f"{host.interface}.sock").exists)
    try:
        yield host.interface
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def box(host: Host, tmp_path: Path) -> Iterator[Box]:
    """A host, the bus, and the worker to start on it."""
    made = Box(host, tmp_path)
    try:
        yield made
    finally:
        made.bus.close()


@pytest.fixture
def far(box: Box, tmp_path: Path) -> FarEnd:
    """A peer on the box's host."""
    return FarEnd(f"{box.host.interface}b", tmp_path)


@pytest.fixture(autouse=True)
def xtables_lock(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the xtables lock, for this test alone: other tests run on the same machine."""
    path = tmp_path_factory.mktemp("lock") / "xtables.lock"
    path.touch()
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    return path
