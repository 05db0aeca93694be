"""The watcher in a process of its own whose credentials, or whose check-ins, do not come."""

from __future__ import annotations

import base64
import json
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kilo.config import Config
from kilo.watcher.roster import LOCAL
from kilo.watcher.worker import WatcherWorker
from kilo.worker import Context
from tests.apiserver import Admin, Standin
from tests.apiserver.kubeconfig import write_kubeconfig
from tests.feeding import QUICK, Bus, eventually, running
from tests.integration.watcher.impatient import dead, hasty, stuck, watched
from tests.integration.watcher.test_plugin import lives
from tests.integration.watcher.test_worker import Watcher, add, key
from tests.unit.watcher.certificates import issue
from tests.unit.watcher.oddserver import OddServer, whole
from tests.unit.watcher.test_identity import jwt

V1 = "client.authentication.k8s.io/v1"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Watcher]]:
    with ExitStack() as stack:
        bus = Bus(tmp_path / "run")
        stack.callback(bus.close)

        def start(kubeconfig: str, factory: Callable[[Context], WatcherWorker] = hasty) -> Watcher:
            config = Config(run_dir=str(bus.run_dir), kubeconfig=kubeconfig, hostname="own")
            process = stack.enter_context(running("watcher", factory, config, QUICK))
            stack.callback(process.end, signal.SIGHUP)
            return Watcher(bus, process)

        yield start


@pytest.fixture
def editor(standin: Standin) -> Iterator[Admin]:
    with closing(standin.admin()) as admin:
        add(admin, "own", 1)
        yield admin


@pytest.fixture
def login(standin: Standin, tmp_path: Path) -> Callable[[str], str]:
    """Write a plugin; the path of a kubeconfig that names it."""

    def login(body: str) -> str:
        path = tmp_path / "login"
        new = tmp_path / "login.new"
        new.write_text(f"#!/bin/sh\n{body}\n")
        new.chmod(0o755)
        new.replace(path)
        user: dict[str, object] = {"exec": {"apiVersion": V1, "command": str(path)}}
        return write_kubeconfig(tmp_path / "kubeconfig", standin.url, user=user)

    return login


def gives(seconds: float) -> str:
    """The body of a plugin whose token ends after so many seconds."""
    end = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    status = {"token": "token", "expirationTimestamp": end}
    return f"echo '{json.dumps({'apiVersion': V1, 'kind': 'ExecCredential', 'status': status})}'"


def hangs(directory: Path) -> str:
    return f"echo $$ >> {directory}/pids; sleep 1000; true"


def processes(directory: Path) -> list[int]:
    """Of the plugin, those that live."""
    path = directory / "pids"
    pids = map(int, path.read_text().split()) if path.exists() else ()
    return [pid for pid in pids if lives(pid)]


def test_a_plugin_that_hangs_from_the_start_is_named(
    start: Callable[..., Watcher], editor: Admin, login: Callable[[str], str], tmp_path: Path
) -> None:
    watcher = start(login(hangs(tmp_path)))
    watcher.failing(
        "credentials", f"credential plugin {tmp_path}/login: no answer within 0.5 s; it was killed"
    )
    watcher.failing("api nodes", "cannot list nodes: credentials: credential plugin")
    watcher.announce()
    watcher.failing("check-in", "cannot patch node own: credentials: credential plugin")
    eventually(lambda: watcher.state().failing.keys() >= {"credentials", "check-in", "api nodes"})
    assert watcher.state().errors["credentials"] >= 1
    login(gives(3600))
    watcher.works()
    eventually(lambda: watcher.state().phase == "ready")
    eventually(lambda: processes(tmp_path) == [])


def test_a_plugin_that_hangs_later_is_named_and_ends_with_the_watcher(
    start: Callable[..., Watcher], editor: Admin, login: Callable[[str], str], tmp_path: Path
) -> None:
    watcher = start(login(gives(1.5)))
    watcher.announce()
    eventually(lambda: watcher.state().phase == "ready")
    watcher.works()
    login(hangs(tmp_path))
    watcher.failing("check-in", "cannot patch node own: credentials: credential plugin")
    assert "no answer within 0.5 s" in watcher.failures()["credentials"]
    eventually(lambda: processes(tmp_path))
    assert watcher.process.end(signal.SIGHUP) == 0
    eventually(lambda: processes(tmp_path) == [])


def test_the_loop_goes_on_while_a_provider_is_loaded_and_asked(
    start: Callable[..., Watcher], standin: Standin, editor: Admin, tmp_path: Path
) -> None:
    """For that the whole of the official client is imported, on a thread."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": int(time.time()) + 3600}).encode()).decode()
    provider = {"name": "oidc", "config": {"id-token": f"head.{claims.rstrip('=')}.signature"}}
    standin.admit(provider["config"]["id-token"])  # type: ignore[index]
    user: dict[str, object] = {"auth-provider": provider}
    watcher = start(write_kubeconfig(tmp_path / "kubeconfig", standin.url, user=user), watched)
    eventually(lambda: watcher.state().phase == "ready")
    assert 0 < eventually(lambda: watcher.state().gauges.get("longest")) < 1


def test_a_check_in_that_never_comes_back_is_told_all_the_same(
    start: Callable[..., Watcher], standin: Standin, editor: Admin, tmp_path: Path
) -> None:
    watcher = start(standin.kubeconfig(tmp_path / "kubeconfig"), stuck)
    eventually(lambda: watcher.state().phase == "ready")
    assert "check-in" not in watcher.state().failing, "there is nothing to announce yet"
    watcher.announce()
    watcher.failing("check-in", "no check-in for more than 1.5 s: the request does not come back")
    eventually(lambda: watcher.state().errors.get("checkin") == 1)
    time.sleep(0.5)
    assert watcher.state().errors["checkin"] == 1


def test_an_announcer_that_died_is_told(
    start: Callable[..., Watcher], standin: Standin, editor: Admin, tmp_path: Path
) -> None:
    watcher = start(standin.kubeconfig(tmp_path / "kubeconfig"), dead)
    watcher.announce()
    watcher.failing("check-in", "no check-in for more than 1.5 s: the thread that makes it died")


def test_a_kubeconfig_that_is_rewritten_while_it_is_used(
    start: Callable[..., Watcher], standin: Standin, editor: Admin, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    watcher = start(standin.kubeconfig(kubeconfig, token="old"))
    watcher.announce()
    eventually(lambda: watcher.state().phase == "ready")
    add(editor, "n2", 2)
    editor.create_peer("p", publicKey=key(9), allowedIPs=["10.5.0.1/32"])
    watcher.has(LOCAL, "node/own", "node/n2", "peer/p")  # so no watch is dropped that has brought nothing
    whole = kubeconfig.read_text()
    kubeconfig.write_text(whole[:60])
    standin.drop()
    watcher.failing("credentials", f"{kubeconfig}: ")
    assert list(watcher.failures()) == ["credentials"], "what was read before is used on"
    standin.admit("new")
    standin.drop()
    watcher.failing("api nodes", "401 Unauthorized")
    standin.kubeconfig(kubeconfig, token="new")
    watcher.works()


def test_token_that_has_expired_is_named_by_readers_and_check_in_alike(
    start: Callable[..., Watcher], standin: Standin, editor: Admin, tmp_path: Path
) -> None:
    standin.admit("another")
    path = write_kubeconfig(tmp_path / "kubeconfig", standin.url, jwt({"exp": 1_000_000}))
    watcher = start(path)
    watcher.announce()
    said = f"not accept the token of {path}: user 'u', which expired at 1970-01-12T13:46:40Z: renew"
    for failing in ("api nodes", "api peers", "check-in"):
        watcher.failing(failing, said)
    eventually(lambda: any(said in f.message for n, f in watcher.state().failing.items() if n == "check-in"))
    eventually(lambda: watcher.state().errors.get("unauthorized", 0) >= 3)
    assert "forbidden" not in watcher.state().errors


def test_server_whose_certificate_is_refused_is_named_by_readers_and_check_in_alike(
    start: Callable[..., Watcher], tmp_path: Path
) -> None:
    for name in ("root", "stranger"):
        issue(tmp_path, name, ca=True)
    issue(tmp_path, "server", "root")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    with closing(OddServer(lambda request: iter([whole(b"{}")]), context)) as odd:
        watcher = start(write_kubeconfig(tmp_path / "kubeconfig", odd.url, ca="stranger.crt"))
        watcher.announce()
        said = f"its certificate is refused: it is signed by 'root', for which {tmp_path}/stranger"
        for failing in ("api nodes", "api peers", "check-in"):
            watcher.failing(failing, said)
        eventually(lambda: watcher.state().errors.get("tls", 0) >= 3)


@pytest.mark.parametrize("length", [0, 1, 60, 200])
def test_a_half_written_kubeconfig_at_the_start_is_named_in_one_line(
    start: Callable[..., Watcher], standin: Standin, tmp_path: Path, length: int
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    standin.kubeconfig(kubeconfig, token="secret")
    kubeconfig.write_text(kubeconfig.read_text()[:length])
    watcher = start(str(kubeconfig))
    assert watcher.process.wait() == 2
    lines = watcher.process.messages("stderr")
    assert len(lines) == 1
    assert lines[0].startswith(f"kg watcher: {kubeconfig}: ")
