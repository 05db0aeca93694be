"""A worker that was taken over cannot speak for others, take what is theirs, or bring them down."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilo.model.workers import WORKERS
from kilo.sandbox.profiles import HEARS
from tests.e2e.observe import no_ping_lost
from tests.lab.agents import REPOSITORY
from tests.lab.host import wait_until
from tests.lab.mesh import Member, Mesh, NodeSpec

pytestmark = pytest.mark.long

KEY = "CPHsDzA3Jg5Q/bO8jfktK4L4dJi9ikStdnl6+IfXTmY="
SECRET = "WB9vvLmLPLQIeYeMAoFBIeLWnE3GJlqLLRvMzaVOE1U="
MEMORY = 16 << 20
"""Bytes that a worker may grow by, whatever it is sent."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    specs = [NodeSpec("ada", "berlin"), NodeSpec("cleo", "lisbon")]
    with Mesh(
        specs, tmp_path_factory.mktemp("logs"), ["--encapsulate=never", "--sandbox=full"], print
    ) as mesh:
        mesh.converge(30)
        yield mesh


@pytest.fixture
def ada(mesh: Mesh) -> Iterator[Member]:
    """Whatever is done on it: no worker ends, none grows, and no ping is lost."""
    agent = mesh["ada"].agent
    before = {name: agent.worker(name) for name in WORKERS}
    sizes = {name: resident(pid) for name, pid in before.items()}
    with no_ping_lost((mesh["ada"], mesh["cleo"]), (mesh["cleo"], mesh["ada"])):
        yield mesh["ada"]
        time.sleep(1)
    assert {name: agent.worker(name) for name in WORKERS} == before
    assert all(agent.phase(name) == "ready" for name in WORKERS)
    grown = {name: resident(pid) - sizes[name] for name, pid in before.items()}
    assert {name: size for name, size in grown.items() if size > MEMORY} == {}


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def hostile(member: Member, worker: str, deed: str, *arguments: object) -> Any:
    """What came of it."""
    command = [sys.executable, "-m", "tests.e2e.hostile", worker, deed, *map(str, arguments)]
    return json.loads(member.host.run("env", f"PYTHONPATH={REPOSITORY}", *command))


@pytest.mark.parametrize("worker", WORKERS)
def test_nobody_speaks_for_another(ada: Member, worker: str) -> None:
    found = hostile(ada, worker, "seize")
    assert found.keys() == set(WORKERS) - {worker}
    assert {deed: said for each in found.values() for deed, said in each.items() if said != "EACCES"} == {}


@pytest.mark.parametrize("worker", WORKERS)
def test_nobody_hears_more_than_he_must_nor_asks_the_parent(ada: Member, worker: str) -> None:
    """netctl and cni are one user: each could hear the other."""
    found = hostile(ada, worker, "listen")
    one_user = {"netctl", "cni"} - {worker} if worker in ("netctl", "cni") else set()
    assert {name for name, said in found.items() if not said} == {*HEARS[worker], *one_user}
    assert found["parent"] == "EACCES"


def test_preshared_keys_are_for_mesh_and_netctl_alone(mesh: Mesh, ada: Member) -> None:
    """health may hear all topics, cni is user 0 as netctl is: they know of the peer, not of its secret."""
    spec = {"publicKey": KEY, "allowedIPs": ["10.9.9.9/32"], "presharedKey": SECRET}
    mesh.cluster.do(lambda admin: admin.create_peer("phone", **spec))
    try:
        wait_until(lambda: SECRET in hostile(ada, "netctl", "overhear", "mesh", "plan"), 20, "it is planned")
        wait_until(lambda: SECRET in hostile(ada, "mesh", "overhear", "watcher", "cluster"), 20, "as heard")
        for worker, target, topic in (
            ("health", "watcher", "cluster"),
            ("health", "mesh", "plan"),
            ("cni", "mesh", "plan"),
            ("watcher", "mesh", "plan"),
        ):
            heard: list[str] = []
            while not heard or (KEY not in heard[-1] and len(heard) < 5):
                heard.append(hostile(ada, worker, "overhear", target, topic))
            assert KEY in heard[-1]
            assert SECRET not in "".join(heard)
        assert hostile(ada, "cni", "overhear", "watcher", "cluster") == "EACCES"
        assert hostile(ada, "netctl", "overhear", "watcher", "cluster") == "EACCES"
    finally:
        mesh.cluster.do(lambda admin: admin.delete_peer("phone"))


@pytest.mark.parametrize("worker", WORKERS)
def test_nobody_takes_what_he_has_no_use_for(ada: Member, worker: str) -> None:
    mine = {"netctl": {"/var/lib/kilo/key"}, "cni": {"/etc/cni/net.d"}}
    found = hostile(ada, worker, "steal")
    taken = {path for path, said in found.items() if not said}
    assert taken - {"/etc/cni/net.d"} == mine.get(worker, set()) - {"/etc/cni/net.d"}
    if worker in mine:
        assert mine[worker] <= taken


@pytest.mark.parametrize("worker", WORKERS)
def test_nobody_kills_another(ada: Member, worker: str) -> None:
    pids = ada.host.run("pgrep", "-f", "kilo").split()
    assert len(pids) > len(WORKERS)
    assert set(hostile(ada, worker, "kill", *pids).values()) <= {"EPERM", "ESRCH"}


@pytest.mark.parametrize(
    ("worker", "target"), [("health", "mesh"), ("health", "watcher"), ("mesh", "netctl")]
)
def test_garbage_and_huge_messages_cut_off_their_sender_alone(ada: Member, worker: str, target: str) -> None:
    assert hostile(ada, worker, "shout", target, 100) == 5, "each of them"


@pytest.mark.parametrize(("worker", "target"), [("health", "mesh"), ("mesh", "netctl")])
def test_a_crowd_at_the_door_goes_by(ada: Member, worker: str, target: str) -> None:
    """More of it than a process may have descriptors; and who is heard stays heard meanwhile."""
    assert hostile(ada, worker, "crowd", target, 15_000) > 1000
    wait_until(lambda: "node ada: healthy" in ada.agent.ask("status"), 10, "newcomers are let in again")


def test_who_asks_for_everything_and_reads_nothing_costs_nobody_else(ada: Member) -> None:
    assert hostile(ada, "health", "dawdle", "mesh", 5) > 100
