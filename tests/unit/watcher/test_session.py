from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from urllib3.exceptions import HTTPError

from kilo.errors import PermanentError, TemporaryError
from kilo.watcher import plugin, session
from kilo.watcher.session import Sessions
from tests.apiserver.kubeconfig import write_kubeconfig
from tests.feeding import eventually
from tests.unit.watcher.certificates import certify
from tests.unit.watcher.oddserver import OddServer, whole

ROOT = Path(__file__).parents[3]
SERVER = "http://192.0.2.1:6443"
V1 = "client.authentication.k8s.io/v1"


class Watched:
    """Sessions of a kubeconfig in a directory, and what they said of failures."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.said: list[str] = []
        self.sessions = Sessions(str(directory / "kubeconfig"), "", self.said.append)

    @property
    def authorization(self) -> str:
        return self.sessions.current().authorization

    def failure(self, within: float | None = None) -> str:
        with pytest.raises(TemporaryError) as caught:
            self.sessions.current(within)
        return str(caught.value)

    @property
    def runs(self) -> int:
        """How often the plugin was run."""
        log = self.directory / "runs"
        return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    with ExitStack() as stack:

        def watch(**user: Any) -> Watched:
            write_kubeconfig(tmp_path / "kubeconfig", SERVER, user=user)
            watched = Watched(tmp_path)
            stack.callback(watched.sessions.close)
            return watched

        yield watch


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Write a plugin; the user section that names it. ``$N`` is the number of the run."""

    def script(body: str) -> dict[str, Any]:
        path = tmp_path / "plugin"
        path.write_text(f"#!/bin/sh\necho x >> {tmp_path}/runs; N=$(wc -l < {tmp_path}/runs)\n{body}\n")
        path.chmod(0o755)
        return {"exec": {"apiVersion": V1, "command": str(path)}}

    return script


def gives(lives: float | None = None) -> str:
    """The body of a plugin that gives ``token-$N``, for so many seconds."""
    status = {"token": "token-$N"}
    if lives is not None:
        end = datetime.now(UTC) + timedelta(seconds=lives)
        status["expirationTimestamp"] = end.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    answer = json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status})
    return "echo " + json.dumps(answer)


Watch = Callable[..., Watched]
Script = Callable[[str], dict[str, Any]]


# Files.


def test_a_token_file_that_is_rotated_is_read_again_at_once(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first\n")
    watched = watch(tokenFile="token")
    assert watched.authorization == "Bearer first"
    pool = watched.sessions.current().pool
    (tmp_path / "new").write_text("second\n")
    (tmp_path / "new").replace(tmp_path / "token")
    assert watched.authorization == "Bearer second"
    assert watched.sessions.current().pool is pool, "connections are kept where only the token changed"


@pytest.mark.parametrize("broken", ["", "\n", "a: [", "{"])
def test_a_file_that_is_broken_for_a_while_is_named_and_what_was_read_is_used_on(
    watch: Watch, tmp_path: Path, broken: str
) -> None:
    watched = watch(token="first")
    kubeconfig = tmp_path / "kubeconfig"
    before = kubeconfig.read_text()
    kubeconfig.write_text(broken)
    assert [watched.authorization for _ in range(3)] == ["Bearer first"] * 3
    assert str(kubeconfig) in watched.said[-1]
    kubeconfig.write_text(before.replace("first", "second"))
    assert watched.authorization == "Bearer second"
    assert watched.said[-1] == ""


def test_a_file_that_is_gone_for_a_while_comes_back_as_it_was(watch: Watch, tmp_path: Path) -> None:
    watched = watch(token="first")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.rename(tmp_path / "away")
    assert watched.authorization == "Bearer first"
    assert watched.said[-1].endswith("kubeconfig does not exist")
    (tmp_path / "away").rename(kubeconfig)
    assert watched.authorization == "Bearer first"
    assert watched.said[-1] == ""


def test_a_new_certificate_makes_new_connections(tmp_path: Path) -> None:
    for name in ("one", "two"):
        certify(tmp_path, name)
    for name, source in (("ca", "one.crt"), ("crt", "one.crt"), ("key", "one.key")):
        (tmp_path / name).write_bytes((tmp_path / source).read_bytes())
    user: dict[str, object] = {"client-certificate": "crt", "client-key": "key"}
    write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1", ca="ca", user=user)
    watched = Watched(tmp_path)
    pool = watched.sessions.current().pool
    (tmp_path / "crt").write_bytes((tmp_path / "two.crt").read_bytes())
    assert watched.sessions.current().pool is pool, "it does not fit the key: half of a rotation"
    assert "key values mismatch" in watched.said[-1]
    (tmp_path / "key").write_bytes((tmp_path / "two.key").read_bytes())
    assert watched.sessions.current().pool is not pool
    assert watched.said[-1] == ""


def test_what_tls_does_not_take_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("none")
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1", ca="ca")
    with pytest.raises(
        PermanentError, match=f"{kubeconfig}: the certificate authority cannot be used: it holds no cert"
    ):
        Sessions(kubeconfig, "", print)


def test_in_a_cluster_the_service_account_is_followed(tmp_path: Path) -> None:
    certify(tmp_path, "authority")
    code = f"""
        import pathlib
        files = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
        files.mkdir(parents=True)
        authority = pathlib.Path("{tmp_path}/authority.crt").read_text()
        (files / "ca.crt").write_text(authority)
        (files / "token").write_text("first\\n")
        from kilo.watcher.session import Sessions
        said = []
        sessions = Sessions("", "", said.append)
        print(sessions.access.server, sessions.current().authorization)
        print(sessions.current().identity.refused(0), sessions.current().way.authority)
        (files / "token").write_text("")
        print(sessions.current().authorization, said[-1])
        (files / "token").write_text("second\\n")
        print(sessions.current().authorization, said[-1])
        (files / "ca.crt").write_text(authority[:300])
        print(sessions.current().authorization, said[-1])
        (files / "ca.crt").write_text(authority)
        print(sessions.current().authorization, said[-1])
    """
    shell = 'mount -t tmpfs none /run && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", sys.executable, "-c", textwrap.dedent(code)]
    service = {"KUBERNETES_SERVICE_HOST": "2001:db8::1", "KUBERNETES_SERVICE_PORT": "443"}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **service}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.pop(0) == "https://[2001:db8::1]:443 Bearer first"
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    said = f"the server does not accept the service account's token in {account}/token"
    assert lines.pop(0) == f"{said} {account}/ca.crt"
    assert lines[0].startswith(
        "Bearer first cannot read the in-cluster configuration: Token file exists but empty"
    )
    assert lines[1] == "Bearer second "
    assert lines[2].startswith(
        "Bearer second /var/run/secrets/kubernetes.io/serviceaccount/ca.crt: the certificate"
    )
    assert lines[3] == "Bearer second "


def test_identity_of_a_plugin_is_its_token(watch: Watch, script: Script) -> None:
    identity = watch(**script(gives(3600))).sessions.current().identity
    assert identity.source.startswith("the token of credential plugin /")
    assert identity.source.endswith("/plugin")


# Providers.


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        ({"name": "oidc"}, " gives no token"),
        ({"name": "oidc", "config": {}}, ": Invalid kube-config file. Expected key id-token in"),
        ({"name": "gcp", "config": {"cmd-path": "x"}}, ": FileNotFoundError"),
    ],
)
def test_a_provider_that_fails_is_named_with_its_user_and_file(
    watch: Watch, provider: dict[str, Any], reason: str
) -> None:
    watched = watch(**{"auth-provider": provider})
    failure = watched.failure()
    where = f"{watched.directory}/kubeconfig: user 'u': auth-provider {provider['name']!r}"
    assert failure.startswith(where + reason)
    assert "\n" not in failure


@pytest.mark.parametrize("kind", [TemporaryError, RuntimeError])
def test_what_a_provider_quotes_is_not_shown(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(provider: object) -> str:
        raise kind("auth-provider 'oidc': cannot refresh: refresh_token=hunter2 was\nrefused " + "x" * 5000)

    monkeypatch.setattr(session, "authorization_of", fail)
    failure = watch(**{"auth-provider": {"name": "oidc"}}).failure()
    assert "hunter2" not in failure
    assert failure.startswith(f"{tmp_path}/kubeconfig: user 'u': auth-provider 'oidc': ")
    assert len(failure) < 500
    assert "\n" not in failure


# Proxies.

PASSWORD = "pass%3Aw%C3%B6rd"
BAD_PROXIES = ["192.0.2.9:port", "http://[2001:db8::9", "gopher://192.0.2.9", "http://192.0.2.9:99999"]


def through(directory: Path, proxy: str, server: str = SERVER) -> Sessions:
    path = directory / "kubeconfig"
    write_kubeconfig(path, server)
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"]["proxy-url"] = proxy
    path.write_text(json.dumps(config))
    return Sessions(str(path), "", print)


@pytest.mark.parametrize("proxy", BAD_PROXIES)
def test_a_proxy_that_cannot_be_used_is_named_at_the_start(
    tmp_path: Path, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by = f"{tmp_path}/kubeconfig: proxy-url of cluster 'c'"
    with pytest.raises(PermanentError, match=re.escape(f"the proxy {proxy} ({by}) cannot be used: ")):
        through(tmp_path, proxy)
    monkeypatch.setenv("https_proxy", proxy)
    write_kubeconfig(tmp_path / "kubeconfig", "https://192.0.2.1:6443")
    with pytest.raises(PermanentError, match=re.escape(f"{proxy} (https_proxy) cannot be used: ")):
        Sessions(str(tmp_path / "kubeconfig"), "", print)
    monkeypatch.setenv("no_proxy", "192.0.2.0/24")
    Sessions(str(tmp_path / "kubeconfig"), "", print).close()


def test_a_bad_proxy_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(PermanentError) as caught:
        through(tmp_path, f"http://me:{PASSWORD}@192.0.2.9:port")
    assert "http://***@192.0.2.9:port" in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("user", [f"me:{PASSWORD}", "me"])
@pytest.mark.parametrize("server", ["http://192.0.2.1:6443", "https://192.0.2.1:6443"])
@pytest.mark.parametrize("by_environment", [True, False])
def test_a_proxy_is_told_the_user_and_password_of_its_url(
    tmp_path: Path, user: str, server: str, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(OddServer(lambda request: iter([whole(b"{}")]))) as proxy:
        url = proxy.url.replace("//", f"//{user}@")
        if by_environment:
            monkeypatch.setenv(f"{server.partition(':')[0]}_proxy", url)
        sessions = through(tmp_path, "" if by_environment else url, server)
        with closing(sessions), suppress(HTTPError):
            sessions.current().pool.request("GET", f"{server}/x", retries=False, timeout=3)
        (head,) = proxy.requests
    assert head.startswith("CONNECT 192.0.2.1:6443" if server.startswith("https") else f"GET {server}/x")
    plain = "me:pass:w\u00f6rd" if ":" in user else "me:"
    assert f"proxy-authorization: Basic {base64.b64encode(plain.encode()).decode()}" in head


# Plugins.


def test_a_plugin_is_run_when_it_is_needed_and_its_token_is_kept(watch: Watch, script: Script) -> None:
    watched = watch(**script(gives(3600)))
    assert watched.runs == 0, "not before somebody asks"
    assert [watched.authorization for _ in range(3)] == ["Bearer token-1"] * 3
    assert watched.said == [""]


def test_a_token_is_renewed_before_it_ends(
    watch: Watch, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "EARLY", 0.5)
    watched = watch(**script(gives(1.5)))
    assert watched.authorization == "Bearer token-1"
    script(gives(3600))
    eventually(lambda: watched.authorization == "Bearer token-2")
    assert watched.runs == 2


def test_a_token_that_has_ended_by_our_clock_is_used_all_the_same(watch: Watch, script: Script) -> None:
    watched = watch(**script(gives(-3600)))
    assert [watched.authorization for _ in range(2)] == ["Bearer token-1", "Bearer token-2"]


def test_a_plugin_that_hangs_holds_nobody_up_for_long(
    watch: Watch, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "TIMEOUT", 3.0)
    watched = watch(**script("sleep 1000"))
    assert watched.runs == 0, "the start does not wait for it"
    reasons: list[str] = []
    threads = [threading.Thread(target=lambda: reasons.append(watched.failure())) for _ in range(3)]
    for thread in threads:
        thread.start()
    late = f"credential plugin {watched.directory}/plugin: no answer in time"
    assert watched.failure(0.2) == late, "who is in a hurry does not wait"
    for thread in threads:
        thread.join(15)
    said = f"credential plugin {watched.directory}/plugin: no answer within 3 s; it was killed"
    assert reasons == [said] * 3
    assert watched.said == [said]
    assert watched.runs == 1, "one for all"
    assert watched.failure() == said
    assert watched.runs == 1, "not again at once"


def test_whatever_hangs_the_wait_has_an_end(
    watch: Watch, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WITHIN", 0.3)
    watched = watch(**script("sleep 1000"))
    said = f"credential plugin {watched.directory}/plugin: no answer within 0.3 s"
    assert watched.failure() == said
    assert watched.said == [said]
    eventually(lambda: watched.runs == 1)
    watched.sessions.close()
    eventually(lambda: len(watched.said) == 2 and "killed by signal 9" in watched.said[1])
    assert watched.runs == 1
    assert watched.failure() != ""
    assert watched.runs == 1, "after the end none is run"


def test_a_plugin_that_failed_is_run_again_after_a_while(
    watch: Watch, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "AGAIN_AFTER", 3600.0)
    watched = watch(**script("exit 1"))
    assert "exit status 1" in watched.failure()
    script(gives(3600))
    assert "exit status 1" in watched.failure()
    assert watched.runs == 1
    monkeypatch.setattr(session, "AGAIN_AFTER", 0.0)
    assert watched.authorization == "Bearer token-2"
    assert watched.said[-1] == ""


def test_a_plugin_that_failed_is_run_at_once_when_its_kubeconfig_changes(
    watch: Watch, script: Script
) -> None:
    watched = watch(**script("exit 1"))
    assert "exit status 1" in watched.failure()
    user = script(gives(3600))
    write_kubeconfig(watched.directory / "kubeconfig", SERVER + "/new", user=user)
    assert watched.authorization == "Bearer token-2"
    assert watched.sessions.access.server == SERVER + "/new"


def test_while_a_token_is_valid_a_plugin_may_fail(
    watch: Watch, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "EARLY", 3600.0)
    watched = watch(**script(gives(600)))
    assert watched.authorization == "Bearer token-1"
    script("exit 1")
    assert watched.authorization == "Bearer token-1"
    assert "exit status 1" in watched.said[-1]
    later = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + 600)
    monkeypatch.setattr(session, "time", later)
    assert not watched.sessions._session.valid()  # type: ignore[union-attr]
    assert "exit status 1" in watched.failure()
    assert watched.sessions.current(0.2).authorization == "Bearer token-1", "for who is in a hurry"


def test_a_token_that_the_server_refuses_is_renewed_but_not_again_and_again(
    watch: Watch, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(**script(gives(3600)))
    first = watched.sessions.current()
    with monkeypatch.context() as later:
        later.setattr(session, "AGAIN_AFTER", 0.0)
        watched.sessions.refused(first)
        second = watched.sessions.current()
    assert second.authorization == "Bearer token-2"
    watched.sessions.refused(first)
    assert watched.authorization == "Bearer token-2", "that was the one before"
    watched.sessions.refused(second)
    assert watched.authorization == "Bearer token-2", "too soon"
    assert watched.runs == 2


def test_a_plugin_may_give_a_certificate(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certify(tmp_path, "node")
    status = {"clientCertificateData": certificate.read_text(), "clientKeyData": key.read_text()}
    answer = {"apiVersion": V1, "kind": "ExecCredential", "status": status}
    (tmp_path / "answer").write_text(json.dumps(answer))
    user = script(f"cat {tmp_path}/answer")
    write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1", user=user)
    watched = Watched(tmp_path)
    first = watched.sessions.current()
    assert first.authorization == ""
    status["clientKeyData"] = "nonsense"
    (tmp_path / "answer").write_text(json.dumps(answer))
    monkeypatch.setattr(session, "AGAIN_AFTER", 0.0)
    watched.sessions.refused(first)
    assert watched.sessions.current() is first
    assert watched.said[-1].endswith(
        "/plugin: the client certificate, or its key, cannot be used: this is not PEM"
    )
