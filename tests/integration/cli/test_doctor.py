"""``kg doctor`` in a network of its own, with one thing wrong at a time."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from kilo.cli.doctor import findings, main
from kilo.config import Config
from kilo.doctor import host
from kilo.doctor.agent import handshakes
from kilo.doctor.finding import Finding
from kilo.errors import TemporaryError
from kilo.model.host import WireGuardPeerState
from tests.apiserver.admin import Admin
from tests.apiserver.kubeconfig import write_kubeconfig
from tests.apiserver.standin import Standin
from tests.feeding import eventually
from tests.unit.watcher.certificates import issue
from tests.unit.watcher.oddserver import OddServer
from tests.unit.watcher.test_identity import jwt

Found = dict[str, tuple[str, str, str]]


def doctor(tmp_path: Path, *flags: str, before: str = "true", network: str = "new") -> Found:
    """What it finds after commands of a shell: verdict, text and what to do, by check."""
    command = [sys.executable, "-m", "kilo", "doctor", "-o", "json", f"--run-dir={tmp_path}/run"]
    command += [
        "--hostname=own",
        f"--cni-path={tmp_path}/cni/10-kilo.conflist",
        "--encapsulate=never",
        *flags,
    ]
    prefix = ["unshare", "-n"] if network == "new" else []
    done = subprocess.run(
        [*prefix, "sh", "-c", f'{before} && "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stderr == ""
    found = {f["check"]: (f["verdict"], f["found"], f["mend"]) for f in json.loads(done.stdout)}
    failed = any(verdict == "fail" for verdict, _, _ in found.values())
    assert done.returncode == int(failed)
    assert all(bool(mend) == (verdict in ("warn", "fail")) for verdict, _, mend in found.values())
    return found


@pytest.fixture
def cni(tmp_path: Path) -> Path:
    directory = tmp_path / "cni"
    directory.mkdir()
    (directory / "10-kilo.conflist").write_text("{}")
    return directory


WELL = "sysctl -qw net.ipv4.ip_forward=1"


def test_a_host_that_has_all(tmp_path: Path, cni: Path) -> None:
    found = doctor(tmp_path, before=WELL)
    for check in (
        "wireguard",
        "encapsulation",
        "forwarding",
        "reverse path",
        "port",
        "cni",
        "subnet",
        "go agent",
    ):
        assert found[check][0] == "ok", found[check]
    assert {check for check, (verdict, _, _) in found.items() if verdict == "fail"} == {"agent", "api"}


def test_that_no_agent_runs_is_said_first_and_is_wrong(tmp_path: Path, cni: Path) -> None:
    """Whoever asks because the mesh does not follow reads that, and not ten lines of what is well."""
    command = [
        sys.executable,
        "-m",
        "kilo",
        "doctor",
        f"--run-dir={tmp_path}/run",
        "--master=http://127.0.0.1:9",
    ]
    done = subprocess.run(
        ["unshare", "-n", *command], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 1
    said, mend, *_ = done.stdout.splitlines()
    assert said.startswith(f"FAIL  agent: no agent runs here: nothing answers in {tmp_path}/run")
    assert "the defaults" in said
    assert mend.strip().startswith("start it") and "--run-dir" in mend


def test_that_it_is_down_shows_in_the_status_where_all_else_is_well(
    tmp_path: Path, cni: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kilo.doctor.host.CHECKS", ())
    monkeypatch.setattr("kilo.doctor.api.checks", lambda config: iter(()))
    assert main(Config(run_dir=str(tmp_path / "run")), "text") == 1
    assert capsys.readouterr().out.count("FAIL") == 1


def test_who_may_not_look_is_not_told_that_it_is_down(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    finding = as_nobody(lambda: next(findings(Config(run_dir=str(tmp_path / "run")), "")))
    assert finding.verdict == "warn"
    assert "no right to" in finding.found and "root" in finding.mend


def as_nobody(work: Callable[[], Finding]) -> Finding:
    """What ``work`` finds as a user without rights."""
    with tempfile.TemporaryFile() as told:
        pid = os.fork()
        if not pid:
            try:
                os.setgroups([])
                os.setresuid(65534, 65534, 65534)
                told.write(msgspec.json.encode(work()))
                told.flush()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        told.seek(0)
        return msgspec.json.decode(told.read(), type=Finding)


class Wrong(NamedTuple):
    """What the doctor is to say of a host on which commands of a shell have done something."""

    check: str
    verdict: str
    found: str
    mend: str
    before: str = "true"
    flags: tuple[str, ...] = ()


WRONG = [
    Wrong("forwarding", "fail", "ip_forward is 0", "sysctl -w", "sysctl -qw net.ipv4.ip_forward=0"),
    Wrong(
        "reverse path",
        "warn",
        "strict on kgt0",
        "net.ipv4.conf.kgt0.rp_filter=2",
        "ip link add kgt0 type bridge && sysctl -qw net.ipv4.conf.all.rp_filter=1",
        ("--interface=kgt0",),
    ),
    Wrong(
        "subnet",
        "warn",
        "10.4.7.0/24 on kgt1",
        "--subnet",
        "ip link add kgt1 type bridge && ip link set kgt1 up && ip addr add 10.4.7.1/24 dev kgt1",
    ),
    Wrong(
        "wireguard", "fail", "there is no kilo0", "--create-interface", flags=("--create-interface=false",)
    ),
    Wrong("wireguard", "fail", "nor is wireguard-go", "install wireguard-go", "PATH=/nowhere"),
    Wrong("encapsulation", "fail", "no IPIP", "--encapsulate=never", flags=("--encapsulate=always",)),
]


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), TemporaryError("netlink socket: none")])
def test_what_cannot_be_looked_at_costs_no_other_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def subnet(config: Config) -> Finding:
        raise error

    monkeypatch.setattr("kilo.doctor.host.CHECKS", (subnet, host.forwarding))
    found = findings(Config(run_dir=str(tmp_path), kubeconfig=str(tmp_path / "none")), "")
    assert [next(found).check, next(found).check] == ["agent", "flags"]
    first, second = next(found), next(found)
    assert (first.check, first.verdict) == ("subnet", "unknown")
    assert str(error) in first.found
    assert second.check == "forwarding"


def test_the_mesh_s_own_routes_are_nobody_else_s(tmp_path: Path, cni: Path) -> None:
    """A host that does not lead reaches the leaders' addresses over its own network."""
    made = "ip link add kgt1 type bridge && ip link set kgt1 up && ip route add 10.4.0.1/32 dev kgt1"
    assert doctor(tmp_path, before=f"{made} proto 171")["subnet"][0] == "ok"
    verdict, said, _ = doctor(tmp_path, before=f"{made} proto static")["subnet"]
    assert (verdict, "10.4.0.1/32 on kgt1" in said) == ("warn", True)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong.check}: {wrong.found}")
def test_one_thing_that_is_wrong(tmp_path: Path, cni: Path, wrong: Wrong) -> None:
    verdict, found, mend = doctor(tmp_path, *wrong.flags, before=wrong.before)[wrong.check]
    assert verdict == wrong.verdict, found
    assert wrong.found in found and wrong.mend in mend


def test_who_has_the_port(tmp_path: Path) -> None:
    listen = "import socket, time; s = socket.socket(2, 2); s.bind(('127.0.0.1', 51820)); time.sleep(30)"
    bound = "until ss -lun | grep -q :51820; do sleep 0.05; done"
    found = doctor(
        tmp_path,
        before=f'ip link set lo up; "{sys.executable}" -c "{listen}" & trap "kill $!" EXIT; {bound}',
    )
    verdict, said, _ = found["port"]
    assert verdict == "fail"
    assert "UDP port 51820 is taken by pid " in said and "python" in said


@pytest.mark.parametrize("own", [True, False])
def test_port_of_a_wireguard_interface_is_ok_only_if_it_is_the_agents(tmp_path: Path, own: bool) -> None:
    name = f"kgd{os.getpid() % 1000000}"
    served = Path(f"/run/wireguard/{name}.sock")
    made = f"wireguard-go {name} >/dev/null 2>&1 && wg set {name} listen-port 51820 && ip link set {name} up"
    bound = "until ss -lun | grep -q :51820; do sleep 0.05; done"
    flag = f"--interface={name}" if own else "--interface=kilo1"
    try:
        found = doctor(tmp_path, flag, before=f'{made}; trap "ip link del {name}" EXIT; {bound}')
    finally:
        served.unlink(missing_ok=True)
    verdict, said, mend = found["port"]
    if own:
        assert (verdict, said) == ("ok", f"{name} has UDP port 51820")
    else:
        assert verdict == "fail"
        assert f"UDP port 51820 is taken by the WireGuard interface {name} of pid " in said
        assert f"ip link delete {name}" in mend


def test_listen_port_of_another_program_is_named(tmp_path: Path) -> None:
    listen = "import socket, time; s = socket.create_server(('', 1107)); time.sleep(30)"
    bound = "until ss -ltn | grep -q :1107; do sleep 0.05; done"
    before = f'ip link set lo up; "{sys.executable}" -c "{listen}" & trap "kill $!" EXIT; {bound}'
    verdict, said, mend = doctor(tmp_path, before=before)["listen"]
    assert verdict == "fail"
    assert "TCP port 1107 is taken by pid " in said and "python" in said
    assert "--listen" in mend
    assert doctor(tmp_path)["listen"][:2] == ("ok", "TCP port 1107 is free")


def test_listen_port_of_the_agent_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kilo.doctor.host.command", lambda pid: "kg-health")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        finding = host.listen(Config(listen=("", port)))
    assert (finding.verdict, finding.found) == ("ok", f"the agent has TCP port {port}")


def test_port_of_a_tunnel_of_the_kernels_is_named(tmp_path: Path) -> None:
    made = "ip link set lo up; ip link add vx0 type vxlan id 7 dstport 51820 dev lo && ip link set vx0 up"
    verdict, said, mend = doctor(tmp_path, before=made)["port"]
    assert (verdict, said) == ("fail", "UDP port 51820 is taken by the vxlan interface vx0")
    assert "--port" in mend


def test_what_the_runtime_takes_first(tmp_path: Path, cni: Path) -> None:
    (cni / "05-other.conflist").write_text("{}")
    assert "05-other.conflist" in doctor(tmp_path)["cni"][1]
    (cni / "05-other.conflist").unlink()
    (cni / "10-kilo.conflist").unlink()
    assert doctor(tmp_path)["cni"][0] == "warn"
    cni.rmdir()
    assert doctor(tmp_path)["cni"][0] == "fail"
    assert doctor(tmp_path, "--cni=false")["cni"][0] == "ok"


def test_a_go_agent_beside_it(tmp_path: Path) -> None:
    program = tmp_path / "kg"
    program.write_bytes(Path("/usr/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "30"]) as other:
        eventually(lambda: os.readlink(f"/proc/{other.pid}/exe") == str(program))
        verdict, said, _ = doctor(tmp_path)["go agent"]
        other.kill()
    assert verdict == "fail" and str(other.pid) in said


@pytest.fixture
def api() -> Iterator[Standin]:
    with Standin() as api:
        yield api


@pytest.fixture
def admin(api: Standin) -> Iterator[Admin]:
    admin = api.admin()
    yield admin
    admin.close()


def test_the_api_and_what_may_be_done_there(tmp_path: Path, api: Standin, admin: Admin) -> None:
    flags = (f"--master={api.url}",)
    found = doctor(tmp_path, *flags, network="own")
    assert found["api"][0] == "ok"
    assert found["node"][:2] == ("fail", "the cluster has no node own")
    assert found["peers"][0] == "ok"
    admin.create_node("own", {"kilo.squat.ai/location": "eu"}, "10.42.0.0/24")
    before = admin.request("GET", "/api/v1/nodes/own")
    found = doctor(tmp_path, *flags, network="own")
    assert found["node"][0] == found["clock"][0] == "ok"
    assert admin.request("GET", "/api/v1/nodes/own") == before
    api.clock_ahead = 300
    verdict, said, _ = doctor(tmp_path, *flags, network="own")["clock"]
    assert verdict == "fail" and said.endswith("s behind the API server's")


def test_an_api_that_is_not_there_and_configuration_that_is_not(tmp_path: Path) -> None:
    verdict, said, mend = doctor(tmp_path, "--master=http://127.0.0.1:9", before="ip link set lo up")["api"]
    assert verdict == "fail" and "Connection refused" in said and "http://127.0.0.1:9" in mend
    assert "/nowhere" in doctor(tmp_path, "--kubeconfig=/nowhere")["api"][1]


def test_token_and_rights_get_different_advice(tmp_path: Path, api: Standin, admin: Admin) -> None:
    path = api.kubeconfig(tmp_path / "kubeconfig", token=jwt({"exp": 1_000_000}))
    api.admit("another")
    verdict, said, mend = doctor(tmp_path, f"--kubeconfig={path}", network="own")["api"]
    assert verdict == "fail" and "which expired at 1970-01-12T13:46:40Z" in said and path in said
    assert mend == "renew it there, and see why it was not renewed"
    api.heal()
    api.fail(403)
    verdict, said, mend = doctor(tmp_path, f"--master={api.url}", network="own")["api"]
    assert verdict == "fail" and "403" in said and "ClusterRole" in mend


def test_server_whose_certificate_is_refused_was_reached(tmp_path: Path) -> None:
    for name in ("root", "stranger"):
        issue(tmp_path, name, ca=True)
    issue(tmp_path, "server", "root", names="DNS:kubernetes")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    with closing(OddServer(lambda request: iter([]), context)) as odd:
        for ca, why in (
            ("stranger", "it is signed by 'root'"),
            ("root", "it is for DNS:kubernetes, and not for"),
        ):
            path = write_kubeconfig(tmp_path / "kubeconfig", odd.url, ca=f"{ca}.crt")
            verdict, said, mend = doctor(tmp_path, f"--kubeconfig={path}", network="own")["api"]
            assert (
                verdict == "fail" and f"{odd.url} was reached, and its certificate is refused: {why}" in said
            )
            assert mend and "can be reached" not in mend


def test_peers_that_do_not_answer() -> None:
    def peer(last: int, sent: int) -> WireGuardPeerState:
        return WireGuardPeerState("K" * 43 + "=", "203.0.113.7", 51820, last, 0, sent)

    now = time.time()
    assert handshakes({"a": peer(int(now) - 60, 9), "b": peer(0, 0)}, now).verdict == "ok"
    silent = handshakes({"a": peer(int(now) - 200, 9), "b": peer(0, 9)}, now)
    assert silent.verdict == "warn"
    assert "1 peers never answered, 1 not for 3 minutes" in silent.found
    assert "203.0.113.7:51820" in silent.found
