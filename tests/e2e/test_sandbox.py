"""What each process of a running agent may, read back from the kernel, beside the table of the design."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kilo.model.workers import WORKERS
from kilo.sandbox.status import Status, read_status
from tests.e2e.observe import left_over
from tests.lab.agents import REPOSITORY, Program
from tests.lab.host import CommandFailed, wait_until
from tests.lab.mesh import KUBECONFIG, Mesh, NodeSpec

USERS = {"watcher": 11071, "mesh": 11072, "netctl": 0, "cni": 0, "health": 11075}
GROUPS = {
    "watcher": {11071, 11072},
    "mesh": {11071, 11072, 11073},
    "netctl": {11072, 11073},
    "cni": {11072, 11074},
    "health": {11071, 11072, 11073, 11074, 11075},
}
AGENT = (sys.executable, "-m", "kilo")
CAPABILITIES = {"netctl": ("NET_ADMIN", "NET_RAW")}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Nothing that should be restricted may fail to be."""
    specs = [NodeSpec("ada", "berlin"), NodeSpec("cleo", "lisbon")]
    flags = ["--encapsulate=never", "--require-sandbox", "--control-group=12345"]
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
    for line in told(mesh)["workers"]:
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


def test_kg_status_for_the_group_is_true(mesh: Mesh) -> None:
    """Who may not hear the bus is told what the parent heard, and not that nobody was heard."""
    member = ["setpriv", "--reuid=1000", "--regid=12345", "--clear-groups", "env", f"PYTHONPATH={REPOSITORY}"]
    host = mesh["ada"].host
    shown = json.loads(host.run(*member, *AGENT, "status", "-o", "json"))
    asked = told(mesh)
    assert (shown["healthy"], shown["reasons"]) == (True, [])
    assert [w["sandbox"] for w in shown["workers"]] == [w["sandbox"] for w in asked["workers"]]
    assert shown["plan"] == {**asked["plan"], "leads": None, "segments": None}
    assert (shown["wireguard"], shown["problems"]) == (None, None)
    with pytest.raises(CommandFailed, match="no right to ask"):
        host.run(*(word.replace("12345", "12346") for word in member), *AGENT, "restart", "mesh")


def test_a_worker_that_hangs_is_said_to_since_when(mesh: Mesh) -> None:
    mesh_worker = mesh["ada"].agent.worker("mesh")
    os.kill(mesh_worker, signal.SIGSTOP)
    try:
        stopped = time.monotonic()
        time.sleep(7)
        found = re.search(r"! mesh: not heard for (\d+) s", mesh["ada"].agent.status())
        assert found and 6 <= int(found[1]) <= time.monotonic() - stopped + 2
    finally:
        os.kill(mesh_worker, signal.SIGCONT)


def test_a_worker_that_was_killed_is_as_restricted_as_before(mesh: Mesh) -> None:
    agent = mesh["ada"].agent
    for worker in WORKERS:
        before = agent.worker(worker)
        status = read_status(before)
        agent.kill_worker(worker)
        agent.await_worker(worker, before)
        after = agent.worker(worker)
        as_before = partial(lambda pid, known: read_status(pid) == known, after, status)
        wait_until(as_before, 10, "as before, and threads of its start have ended")


def test_at_level_capabilities_users_and_files_stay_and_all_else_goes(logs: Path) -> None:
    flags = ["--encapsulate=never", "--sandbox=capabilities", "--require-sandbox"]
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


@pytest.mark.parametrize("worker", ["netctl", "cni"])
def test_a_worker_that_is_user_0_cannot_start_processes_as_the_parent(mesh: Mesh, worker: str) -> None:
    """The forkserver would run what it is told with all that the parent has."""
    host = mesh["ada"].host
    (listener,) = host.path("/run/kilo").glob("pymp-*/listener-*")
    target = f"/run/kilo/{listener.parent.name}/{listener.name}"
    assert connects(mesh, worker, "/run/kilo/mesh/bus.sock") == "connected"
    assert connects(mesh, worker, target) == "PermissionError"


@pytest.mark.parametrize("worker, answer", [("netctl", "connected"), ("cni", "PermissionError")])
def test_only_netctl_may_ask_wireguard_go_for_the_key(mesh: Mesh, worker: str, answer: str) -> None:
    assert connects(mesh, worker, "/run/wireguard/kilo0.sock") == answer


def connects(mesh: Mesh, worker: str, path: str) -> str:
    """What comes of connecting to a socket with the user, groups and capabilities of a worker."""
    tries = (
        "import socket, sys\n"
        "try: socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('connected')\n"
        "except OSError as e: print(type(e).__name__)"
    )
    groups = ",".join(map(str, GROUPS[worker]))
    who = [f"--reuid={USERS[worker]}", "--regid=0", f"--groups={groups}", "--bounding-set=-all"]
    python = [sys.executable, "-I", "-S", "-c", tries, path]
    return mesh["ada"].host.run("setpriv", *who, "--inh-caps=-all", "--no-new-privs", *python).strip()


SURROUNDINGS = {
    "no right to change users": ("setpriv", "--bounding-set=-chown,-setuid,-setgid,-kill,-setpcap", *AGENT),
    "no right to pass over permissions": (
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search,-fowner,-fsetid",
        *AGENT,
    ),
    "files closed to others": ("sh", "-c", 'umask 077; exec "$0" "$@"', *AGENT),
}
REFUSED = {"no right to change users": {"user", "bounding set", "securebits"}}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_it_runs_where_not_all_can_be_taken_away(logs: Path, surroundings: str) -> None:
    """Every worker starts, starts again, and cleans up, and what could not be had is named."""
    program = Program(SURROUNDINGS[surroundings])
    specs = [NodeSpec("ada", "berlin", program=program), NodeSpec("cleo", "lisbon")]
    with Mesh(specs, logs, ["--encapsulate=never"], print) as mesh:
        mesh.converge(30)
        agent = mesh["ada"].agent
        for worker in WORKERS:
            before = agent.kill_worker(worker)
            agent.await_worker(worker, before)
        for line in told(mesh)["workers"]:
            named = {refusal.split(":")[0] for refusal in line["sandbox"]["refused"]}
            assert named == REFUSED.get(surroundings, set()), line
        assert agent.terminate() == 0
        assert left_over(mesh["ada"], ("routes", "rules", "firewall", "sets")) == {}


def test_a_kubeconfig_that_only_root_may_read_from_now_on(logs: Path) -> None:
    """Rotated by a tool that sets its mode: the watcher has another user from then on."""
    with Mesh([NodeSpec("ada", "berlin"), NodeSpec("cleo", "lisbon")], logs, [], print) as mesh:
        mesh.converge(30)
        agent, path = mesh["ada"].agent, mesh["ada"].host.path(KUBECONFIG)
        watcher = agent.worker("watcher")
        assert read_status(watcher).uid == 11071
        new = path.with_name("new")
        new.write_bytes(path.read_bytes())
        new.chmod(0o600)
        new.rename(path)
        agent.await_worker("watcher", watcher)
        assert read_status(agent.worker("watcher")).uid == 0
        (sandbox,) = [line["sandbox"] for line in told(mesh)["workers"] if line["worker"] == "watcher"]
        (refusal,) = sandbox["refused"]
        assert refusal.startswith("user") and KUBECONFIG in refusal


def test_wireguard_go_that_is_installed_later(logs: Path) -> None:
    folder = "/run/later"
    program = Program(("env", f"PATH={folder}", *AGENT))
    specs = [NodeSpec("ada", "berlin", program=program), NodeSpec("cleo", "lisbon")]
    with Mesh(specs, logs, ["--encapsulate=never"], print) as mesh:
        host = mesh["ada"].host
        host.path(folder).mkdir(exist_ok=True)
        mesh.start_agents()
        netctl = wait_for_failing(mesh, "wireguard-go")
        wireguard = shutil.which("wireguard-go")
        assert wireguard
        shutil.copy(wireguard, host.path(f"{folder}/wireguard-go"))
        mesh["ada"].agent.await_worker("netctl", netctl)
        mesh.converge(30)


def wait_for_failing(mesh: Mesh, text: str) -> int:
    """Wait until netctl says that something with ``text`` does not work; its process id."""

    def failing() -> bool:
        return text in mesh["ada"].agent.status()

    wait_until(failing, 20, f"kg status speaks of {text}")
    return mesh["ada"].agent.worker("netctl")


def told(mesh: Mesh) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(mesh["ada"].agent.ask("status", "-o", "json"))
    return status


def test_the_key_is_root_s(mesh: Mesh) -> None:
    key: Path = mesh["ada"].host.path("/var/lib/kilo/key")
    assert (key.stat().st_uid, key.stat().st_mode & 0o777) == (0, 0o600)
