"""What each process of a running agent may, read back from the kernel, beside the table of the design."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilo.model.workers import WORKERS
from kilo.sandbox.status import Status, read_status
from tests.lab.mesh import Mesh, NodeSpec

pytestmark = pytest.mark.e2e

USERS = {"watcher": 11071, "mesh": 11072, "netctl": 0, "cni": 0, "health": 11075}
GROUPS = {
    "watcher": {11071, 11072},
    "mesh": {11071, 11072, 11073},
    "netctl": {11072, 11073},
    "cni": {11072, 11074},
    "health": {11071, 11072, 11073, 11074, 11075},
}
CAPABILITIES = {"netctl": ("NET_ADMIN", "NET_RAW")}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Nothing that should be restricted may fail to be."""
    specs = [NodeSpec("ada", "berlin"), NodeSpec("cleo", "lisbon")]
    flags = ["--encapsulate=never", "--sandbox=full", "--require-sandbox", "--control-group=12345"]
    with Mesh(specs, tmp_path_factory.mktemp("logs"), flags, print) as mesh:
        mesh.converge(30)
        yield mesh


@pytest.mark.parametrize("worker", WORKERS)
def test_each_worker_has_what_the_table_says(mesh: Mesh, worker: str) -> None:
    found = read_status(mesh["ada"].agent.worker(worker))
    assert_restricted(found)
    assert (found.uids, set(found.groups)) == ((USERS[worker],) * 4, GROUPS[worker])
    allowed = CAPABILITIES.get(worker, ())
    assert found.permitted == found.effective == found.bounding == allowed


def test_what_netctl_starts_has_less_than_netctl(mesh: Mesh) -> None:
    (process,) = mesh["ada"].agent.wireguard_go()
    found = read_status(process.pid)
    assert_restricted(found)
    assert found.permitted == ("NET_ADMIN",)
    assert set(found.bounding) <= {"NET_ADMIN", "NET_RAW"}


def assert_restricted(found: Status) -> None:
    assert found.no_new_privs and found.seccomp == 2


def test_kg_status_says_so(mesh: Mesh) -> None:
    told: dict[str, Any] = json.loads(mesh["ada"].agent.ask("status", "-o", "json"))
    for line in told["workers"]:
        worker, sandbox = line["worker"], line["sandbox"]
        assert sandbox["refused"] == []
        assert sandbox["uid"] == USERS[worker]
        assert sandbox["capabilities"] == list(CAPABILITIES.get(worker, ()))
        assert sandbox["landlock"] and sandbox["seccomp"] and sandbox["no_new_privs"]


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_s_directory_is_its_own(mesh: Mesh, worker: str) -> None:
    directory = mesh["ada"].host.path(f"/run/kilo/{worker}")
    number = 11071 + WORKERS.index(worker)
    assert (directory.stat().st_uid, directory.stat().st_gid) == (USERS[worker], number)
    assert directory.stat().st_mode & 0o7777 == 0o2750
    socket = (directory / "bus.sock").stat()
    assert (socket.st_uid, socket.st_gid, socket.st_mode & 0o777) == (USERS[worker], number, 0o660)


def test_the_control_socket_is_for_the_group(mesh: Mesh) -> None:
    socket = mesh["ada"].host.path("/run/kilo/control.sock").stat()
    assert (socket.st_uid, socket.st_gid, socket.st_mode & 0o777) == (11070, 12345, 0o660)


def test_a_worker_that_was_killed_is_as_restricted_as_before(mesh: Mesh) -> None:
    agent = mesh["ada"].agent
    for worker in WORKERS:
        before = agent.worker(worker)
        status = read_status(before)
        agent.kill_worker(worker)
        agent.await_worker(worker, before)
        assert read_status(agent.worker(worker)) == status


def test_by_default_users_and_files_stay_and_all_else_goes(logs: Path) -> None:
    flags = ["--encapsulate=never", "--require-sandbox"]
    with Mesh([NodeSpec("ada", "berlin"), NodeSpec("cleo", "lisbon")], logs, flags, print) as mesh:
        mesh.converge(30)
        agent = mesh["ada"].agent
        for worker in WORKERS:
            found = read_status(agent.worker(worker))
            assert_restricted(found)
            assert found.uid == 0
            assert found.permitted == found.effective == found.bounding == CAPABILITIES.get(worker, ())
        (process,) = agent.wireguard_go()
        assert read_status(process.pid).permitted == ("NET_ADMIN",)


def test_off_is_off(logs: Path) -> None:
    flags = ["--encapsulate=never", "--sandbox=off"]
    with Mesh([NodeSpec("ada", "berlin"), NodeSpec("cleo", "lisbon")], logs, flags, print) as mesh:
        mesh.converge(30)
        found = read_status(mesh["ada"].agent.worker("mesh"))
        assert not found.seccomp and not found.no_new_privs and found.effective


def test_the_key_is_root_s(mesh: Mesh) -> None:
    key: Path = mesh["ada"].host.path("/var/lib/kilo/key")
    assert (key.stat().st_uid, key.stat().st_mode & 0o777) == (0, 0o600)
