"""Credential plugins as real programs: scripts."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kilo.errors import ProtocolError, TemporaryError
from kilo.watcher import plugin as module
from kilo.watcher.kubeconfig import Kubeconfig, parse_kubeconfig
from kilo.watcher.plugin import Credential, PluginRunner, decode_credential
from tests.clock import Given, bound
from tests.feeding import PATIENCE, eventually

V1 = "client.authentication.k8s.io/v1"
V1BETA1 = "client.authentication.k8s.io/v1beta1"
TOKEN = "dG9rZW4gb2YgdGhlIG5vZGU="
Run = Callable[..., Credential]


def answer(version: str = V1, **status: Any) -> str:
    return json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})


class Scripts:
    """Scripts in a directory of their own, and what runs them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runner = PluginRunner()

    def kubeconfig(self, body: str, **changes: Any) -> Kubeconfig:
        script = self.directory / "plugin"
        if body:
            script.write_text(f"#!/bin/sh\n{body}\n")
            script.chmod(0o755)
        cluster = changes.pop("cluster", {})
        config = {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443", **cluster}}],
            "users": [{"name": "u", "user": {"exec": {"apiVersion": V1, "command": "./plugin", **changes}}}],
        }
        return parse_kubeconfig(str(self.directory / "kubeconfig"), json.dumps(config).encode())

    def run(self, body: str, ca: bytes = b"", **changes: Any) -> Credential:
        config = self.kubeconfig(body, **changes)
        assert config.user.exec is not None
        return self.runner.run(config.user.exec, config, ca)

    def failure(self, body: str, **changes: Any) -> str:
        with pytest.raises(TemporaryError) as caught:
            self.run(body, **changes)
        return str(caught.value)

    def said(self, name: str) -> str:
        return (self.directory / name).read_text()


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    scripts = Scripts(tmp_path)
    yield scripts
    scripts.runner.stop()


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_token_with_its_end(scripts: Scripts) -> None:
    given = scripts.run(f"echo '{answer(token=TOKEN, expirationTimestamp='2030-01-02T03:04:05Z')}'")
    assert given == Credential(TOKEN, expires=1893553445.0)


def test_a_certificate_with_its_key(scripts: Scripts) -> None:
    given = scripts.run(f"echo '{answer(clientCertificateData='certificate', clientKeyData='key')}'")
    assert given == Credential(certificate=b"certificate", key=b"key")
    assert "key'" not in repr(given)


def test_a_plugin_is_given_its_arguments_and_variables_and_who_asks(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "i")
    body = 'echo "$@" $OWN $INHERITED > "$OUT"; echo "$KUBERNETES_EXEC_INFO" > "$OUT.info"'
    out = str(scripts.directory / "out")
    scripts.run(
        f"{body}; echo '{answer(V1BETA1, token=TOKEN)}'",
        apiVersion=V1BETA1,
        args=["a b", "c"],
        env=[{"name": "OWN", "value": "o"}, {"name": "OUT", "value": out}],
    )
    assert scripts.said("out") == "a b c o i\n"
    assert json.loads(scripts.said("out.info")) == {
        "apiVersion": V1BETA1,
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }


def test_a_plugin_that_wants_to_know_is_told_about_the_cluster(scripts: Scripts) -> None:
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "mesh"}}
    scripts.run(
        f"echo \"$KUBERNETES_EXEC_INFO\" > {scripts.directory}/info; echo '{answer(token=TOKEN)}'",
        ca=b"authority",
        provideClusterInfo=True,
        cluster={"tls-server-name": "kubernetes", "extensions": [{"name": "x"}, extension]},
    )
    assert json.loads(scripts.said("info"))["spec"] == {
        "interactive": False,
        "cluster": {
            "server": "https://192.0.2.1:6443",
            "tls-server-name": "kubernetes",
            "certificate-authority-data": base64.b64encode(b"authority").decode(),
            "config": {"audience": "mesh"},
        },
    }


def test_a_plugin_is_also_found_on_the_path(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{scripts.directory}:{os.environ['PATH']}")
    assert scripts.run(f"echo '{answer(token=TOKEN)}'", command="plugin").token == TOKEN


@pytest.mark.timing
def test_one_that_hangs_is_killed_in_time_with_all_that_it_started(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 2.0)
    with Given() as clock:
        reason = scripts.failure(
            f"echo open https://login >&2; sleep 1000 & echo $! $$ > {scripts.directory}/pids; wait"
        )
    assert clock.seconds < bound(module.TIMEOUT + 2.5)
    assert reason == (
        "credential plugin ./plugin: no answer within 2 s; it was killed; it said: open https://login"
    )
    eventually(lambda: not any(lives(int(pid)) for pid in scripts.said("pids").split()))


def test_one_that_never_stops_talking_is_killed_in_time(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    assert "no answer within 0.5 s" in scripts.failure("exec yes >&2")
    monkeypatch.setattr(module, "TIMEOUT", PATIENCE)
    assert "too much on standard output" in scripts.failure("exec yes")


def test_a_child_that_keeps_the_pipes_is_not_waited_for(scripts: Scripts) -> None:
    given = scripts.run(f"sleep 1000 & echo $! > {scripts.directory}/child; echo '{answer(token=TOKEN)}'")
    assert given.token == TOKEN
    os.kill(int(scripts.said("child")), signal.SIGKILL)  # it is still there


def test_one_that_runs_is_killed_at_the_end_and_no_other_is_run(scripts: Scripts) -> None:
    def stop() -> None:
        pids = scripts.directory / "pids"
        eventually(lambda: pids.exists() and pids.read_text())
        scripts.runner.stop()

    threading.Thread(target=stop).start()
    assert scripts.failure(f"echo $$ > {scripts.directory}/pids; sleep 1000; true").endswith(
        "killed by signal 9"
    )
    assert not lives(int(scripts.said("pids")))
    assert "this agent is ending" in scripts.failure("true")


@pytest.mark.parametrize(
    ("body", "changes", "reason"),
    [
        ("echo no such profile >&2; exit 3", {}, "exit status 3: no such profile"),
        ("exit 1", {}, "exit status 1"),
        ("kill -15 $$", {}, "killed by signal 15"),
        ("", {"installHint": "get it\nfrom there "}, "is not there; get it from there"),
        ("", {"command": "no-such-plugin"}, "credential plugin no-such-plugin is not there"),
        ("", {"command": "/etc/passwd"}, "cannot be run: Permission denied"),
        ("true", {}, "what it printed is no credential"),
        (f"echo {TOKEN}", {}, "what it printed is no credential"),
    ],
)
def test_what_went_wrong_is_said(scripts: Scripts, body: str, changes: dict[str, Any], reason: str) -> None:
    assert reason in scripts.failure(body, **changes)


def test_what_looks_like_a_key_is_not_shown(scripts: Scripts) -> None:
    key = "eyJhbGciOiJSUzI1NiIsImtpZCI6IkZha2VLZXkifQ.eyJzdWIiOiJub2RlIn0.c2lnbmF0dXJl"
    reason = scripts.failure(f"echo bad token {key} >&2; exit 1")
    assert reason == "credential plugin ./plugin: exit status 1: bad token ***"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        answer(),
        answer(V1BETA1, token=TOKEN),
        answer(token=TOKEN).replace("ExecCredential", "Secret"),
        answer(token=TOKEN, clientKeyData="key"),
        answer(clientCertificateData="certificate"),
        answer(token=TOKEN, expirationTimestamp="tomorrow"),
        answer(token=TOKEN, expirationTimestamp="2030-01-02T03:04:05"),
        answer(token=5),
    ],
)
def test_an_answer_that_is_no_credential_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_credential(text.encode(), V1)
    assert TOKEN not in str(caught.value)
