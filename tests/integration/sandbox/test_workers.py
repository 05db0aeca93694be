"""The real workers, each under its own profile, doing its work."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tenacity
import yaml

from kilo.bus import ANNOUNCE, CLUSTER, CNI, HOST, PLAN, TOPOLOGY, WORKERS
from kilo.config import Config
from kilo.model.host import WorkerState
from kilo.model.plan import CniTarget, PlanItem
from kilo.model.workers import IDS
from kilo.sandbox import read_status
from kilo.sandbox.home import hand_over
from kilo.sandbox.profiles import profile_for
from tests.apiserver import CRDS_FILE, Standin
from tests.feeding import Bus, eventually
from tests.integration.netctl.hosts import Host, ip, lines
from tests.integration.sandbox.conftest import FEWER_RIGHTS, command
from tests.unit.health.client import fetch
from tests.unit.health.samples import topology
from tests.unit.mesh.states import host_of, node
from tests.unit.netctl.plans import mesh


class Confined:
    """One worker, and the bus on which the others are played."""

    def __init__(self, bus: Bus, worker: str, process: subprocess.Popen[bytes]) -> None:
        self.bus, self.worker, self.process = bus, worker, process

    @property
    def log(self) -> list[dict[str, Any]]:
        path = self.bus.run_dir / self.worker / "log"
        return [msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line.startswith(b"{")]

    def state(self) -> WorkerState:
        def beat() -> WorkerState | None:
            assert self.process.poll() is None, self.log
            return self.bus.state(self.worker)

        return eventually(beat)

    def ready(self) -> WorkerState:
        eventually(lambda: self.state().phase == "ready", what="ready")
        return self.state()

    def end(self, number: int = signal.SIGTERM) -> None:
        """It ends well, and has said nothing worse than that something is failing at the moment."""
        self.process.send_signal(number)
        assert self.process.wait(60) == 0, self.log


Start = Callable[..., Confined]


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """Starts a worker with flags. The others are played by root, on sockets of their groups."""
    for name in WORKERS:
        os.makedirs(place / "run" / name)
        hand_over(str(place / "run" / name), 0, IDS[name])
    bus = Bus(place / "run")
    with ExitStack() as stack:
        stack.callback(bus.close)

        def start(
            worker: str,
            environment: dict[str, str] | None = None,
            before: Sequence[str] = (),
            **flags: Any,
        ) -> Confined:
            return stack.enter_context(_confined(bus, worker, flags, environment or {}, before))

        yield start


@contextmanager
def _confined(
    bus: Bus, worker: str, flags: dict[str, Any], environment: dict[str, str], before: Sequence[str]
) -> Iterator[Confined]:
    values = {"run_dir": str(bus.run_dir), "hostname": "a", "resync_period": 300.0, **flags}
    what = command("works", worker, values, before=before)
    with subprocess.Popen(what, env={**os.environ, **environment}) as process:
        try:
            yield Confined(bus, worker, process)
        finally:
            process.kill()


def confirmed(confined: Confined, **flags: Any) -> None:
    """Nothing was refused, and the kernel says of it what its profile says."""
    entered = eventually(lambda: [line for line in confined.log if line["level"] == "sandbox"])[0]
    assert entered["refused"] == []
    profile = profile_for(confined.worker, Config(run_dir=str(confined.bus.run_dir), **flags))
    status = read_status(confined.process.pid)
    assert status.uids == (profile.uid,) * 4
    assert status.gids == (profile.gid,) * 4
    assert status.groups == profile.groups
    assert status.permitted == status.effective == status.bounding == profile.capabilities
    assert status.ambient == status.inheritable == profile.ambient
    assert (status.no_new_privs, status.seccomp) == (True, 2)
    socket_file = confined.bus.run_dir / confined.worker / "bus.sock"
    assert socket_file.stat().st_gid == IDS[confined.worker]


def test_mesh_plans(start: Start) -> None:
    local = node("n1", "x")
    worker = start("mesh", hostname="n1")
    worker.state()
    confirmed(worker)
    worker.bus.put(HOST, host=host_of(local))
    worker.bus.update(CLUSTER, {"local": local, "node/n1": local, "node/n2": node("n2", "y")})
    worker.ready()
    worker.end()


@pytest.mark.parametrize("user", [12345, IDS["mesh"]])
@pytest.mark.parametrize("before", [[], FEWER_RIGHTS], ids=["root", "fewer rights"])
def test_one_whose_predecessor_hangs_waits_for_its_end(
    start: Start, place: Path, before: list[str], user: int
) -> None:
    """Also if that has another user, as after an upgrade. 2 would mean that starting again does not help."""
    home = place / "run/mesh"
    with open(home / "lock", "w") as lock, socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(home / "bus.sock"))
        for path in (home, home / "lock", home / "bus.sock"):
            os.chown(path, user, user)
        (home / "lock").chmod(0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = start("mesh", before=before, hostname="n1")
        assert waiting.process.wait(60) == 1
        assert "another mesh runs here" in (home / "log").read_text()
        assert (home / "bus.sock").exists()
    worker = start("mesh", before=before, hostname="n1")
    worker.state()
    assert (home / "lock").stat().st_uid == IDS["mesh"]
    worker.end()


def test_cni_writes_the_list(start: Start, place: Path) -> None:
    path = place / "net.d/10-kilo.conflist"
    worker = start("cni", cni_path=str(path))
    worker.state()
    confirmed(worker)
    worker.bus.put(CNI, cni=CniTarget("10.2.3.0/24", 1380))
    worker.ready()
    eventually(path.exists)
    assert (path.stat().st_uid, path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (0, 0, 0o644)
    worker.bus.put(CNI, cni=CniTarget("10.2.4.0/24", 1380))
    eventually(lambda: "10.2.4.0/24" in path.read_text())
    worker.end()


def test_cni_follows_a_link_to_another_directory(start: Start, place: Path) -> None:
    (place / "real").mkdir()
    (place / "net.d").mkdir()
    (place / "net.d/10-kilo.conflist").symlink_to("../real/list")
    worker = start("cni", cni_path=str(place / "net.d/10-kilo.conflist"))
    worker.state()
    worker.bus.put(CNI, cni=CniTarget("10.2.3.0/24", 1380))
    eventually((place / "real/list").exists)


def test_health_serves_and_draws(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    worker = start("health", listen=address)
    worker.ready()
    confirmed(worker)
    worker.bus.update(TOPOLOGY, topology())
    eventually(lambda: fetch(address, "/graph?format=dot").status == 200)
    for layout, kind, first in (
        ("circo", "svg", b"<?xml"),
        ("dot", "png", b"\x89PNG"),
        ("neato", "json", b"{"),
    ):
        answer = fetch(address, f"/graph?layout={layout}&format={kind}")
        assert (answer.status, answer.body[: len(first)]) == (200, first), answer
    assert b"<text" in fetch(address, "/graph?layout=circo&format=svg").body
    assert fetch(address, "/metrics").status == 200
    worker.end()


def test_a_worker_whose_code_was_not_installed(start: Start, place: Path) -> None:
    """It is in a directory of somebody's own, which Python was told of."""
    vendor = place / "vendor"
    package = Path(tenacity.__file__).parent
    shutil.copytree(package, vendor / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    worker = start("watcher", {"PYTHONPATH": str(vendor)}, master="http://127.0.0.1:9")
    assert worker.state().phase == "starting"
    entered = next(line for line in worker.log if line["level"] == "sandbox")
    assert entered["refused"] == []
    assert entered["landlock"]
    worker.end(signal.SIGHUP)


@pytest.mark.parametrize("mode, uid", [(0o644, IDS["watcher"]), (0o600, 0)])
def test_watcher_reads_the_cluster(start: Start, place: Path, mode: int, uid: int) -> None:
    """Where only root may read the kubeconfig, it is root without capabilities, and says so."""
    with Standin(bookmark_period=0.2) as server, closing(server.admin()) as admin:
        admin.create_crd(CRDS_FILE)
        admin.create_node("a", {}, "10.2.0.0/24", {})
        path = place / "kubeconfig"
        server.kubeconfig(path)
        path.chmod(mode)
        worker = start("watcher", kubeconfig=str(path))
        worker.bus.put(ANNOUNCE)
        worker.ready()
        if not uid:
            assert read_status(worker.process.pid).uids == (0,) * 4
            assert [refused["what"] for refused in worker.log[0]["refused"]] == ["user"]
            assert read_status(worker.process.pid).permitted == ()
        else:
            confirmed(worker)
        worker.end()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    try:
        made.wire()
        ip("route add default via 10.1.0.1")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("firewall", ["legacy", "nftables"])
def test_netctl_makes_the_data_path(
    host: Host, start: Start, place: Path, firewall: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(place / "xtables.lock"))
    flags = {"interface": host.interface, "state_dir": str(place / "state"), "encapsulate": "never"}
    worker = start("netctl", firewall=firewall, **flags)
    worker.state()
    confirmed(worker, firewall=firewall)
    plan: dict[str, PlanItem] = mesh(3)
    worker.bus.update(PLAN, plan)
    eventually(lambda: "applied_generation" in worker.state().gauges, what="applied")
    assert not worker.state().failing
    assert [line for line in lines("route") if "proto 171" in line]
    (program,) = host.programs()
    served = read_status(program)
    assert served.permitted == served.effective == served.ambient == ("NET_ADMIN",)
    assert (served.no_new_privs, served.seccomp, served.uids) == (True, 2, (0,) * 4)
    assert stat.S_IMODE((place / "state/key").stat().st_mode) == 0o600
    worker.end()
    assert not [line for line in lines("route") if "proto 171" in line]


def test_netctl_sees_who_has_its_mark(host: Host, start: Start, place: Path) -> None:
    """A process that is no netctl keeps nobody from working: its user must be seen, from inside."""
    with socket.socket(socket.AF_UNIX) as mark:
        mark.bind(f"\0kilo/netctl/{host.interface}")
        mark.listen(1000)  # it asks again and again, and is never answered
        worker = start("netctl", interface=host.interface, state_dir=str(place / "state"))
        assert worker.process.wait(60) == 1
    said = (worker.bus.run_dir / "netctl/log").read_text()
    assert re.search(rf"pid {os.getpid()}\).* started as '[^']*python", said), said


def test_watcher_runs_a_credential_plugin(start: Start, place: Path) -> None:
    """The plugin is a script that starts another program; it keeps what it knows in root's home, which it can
    use as its owner, without any capability."""
    plugin = place / "bin/get-token"
    plugin.parent.mkdir()
    plugin.write_text(
        "#!/bin/sh\necho x > $HOME/cache || exit 1\ngrep Cap /proc/self/status > $HOME/rights\n"
        'echo \'{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",'
        ' "status": {"token": "t"}}\'\n'
    )
    plugin.chmod(0o755)
    home = place / "home"
    home.mkdir(0o700)
    with Standin(bookmark_period=0.2) as server, closing(server.admin()) as admin:
        admin.create_crd(CRDS_FILE)
        admin.create_node("a", {}, "10.2.0.0/24", {})
        path = place / "kubeconfig"
        content = yaml.safe_load(Path(server.kubeconfig(path)).read_text())
        execute = {"apiVersion": "client.authentication.k8s.io/v1", "command": "bin/get-token"}
        content["users"][0]["user"] = {"exec": {**execute, "interactiveMode": "Never"}}
        content["contexts"][0]["context"]["user"] = content["users"][0]["name"]
        path.write_text(yaml.safe_dump(content))
        worker = start("watcher", {"HOME": str(home)}, kubeconfig=str(path))
        worker.ready()
        assert (home / "cache").exists()
        rights = dict(line.split() for line in (home / "rights").read_text().splitlines())
        assert len(rights) == 5
        assert not any(int(mask, 16) for mask in rights.values())
        refused = {each["what"]: each["reason"] for each in worker.log[0]["refused"]}
        assert set(refused) == {"user", "landlock"}
        assert "bin/get-token" in refused["user"]
        worker.end()
