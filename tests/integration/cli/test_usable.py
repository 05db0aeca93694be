"""A configuration of the API that cannot be used ends the program before it has made anything."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kilo.cli.usable import Look, refuse
from kilo.config import Config
from kilo.errors import PermanentError
from tests.clock import bound
from tests.feeding import eventually

GOOD = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: "https://192.0.2.1:6443"}}]
users: [{name: u, user: {token: t}}]
"""
BAD = {
    "missing": (None, "--kubeconfig: {} does not exist"),
    "empty": ("", "{}: the file is empty"),
    "no YAML": ("x: [", "{}: line 1, column 5: this is not YAML"),
    "no current context": ("apiVersion: v1\nkind: Config", "{}: current-context is missing"),
    "no such user": (GOOD.replace("{name: u,", "{name: v,"), "{}: there is no user named 'u' in users"),
    "no certificate": (
        GOOD.replace("token: t", "client-certificate-data: eA==, client-key-data: eA=="),
        "{}: the client certificate, or its key,",
    ),
}


def written(path: Path, content: str | None) -> Path:
    if content is not None:
        path.write_text(content)
    return path


def started(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``kg`` in a network of its own, with all that it makes under ``tmp_path/made``."""
    made = tmp_path / "made"
    flags = [f"--run-dir={made}/run", f"--state-dir={made}/state", f"--cni-path={made}/cni/10.conflist"]
    command = ["unshare", "-n", sys.executable, "-m", "kilo", *words, *flags]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KUBERNETES_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=environment)


@pytest.mark.parametrize("worker", [(), ("watcher",), ("watcher", "--require-sandbox")], ids=str)
@pytest.mark.parametrize("case", BAD)
def test_one_line_status_2_and_nothing_made(tmp_path: Path, case: str, worker: tuple[str, ...]) -> None:
    content, said = BAD[case]
    path = written(tmp_path / "kubeconfig", content)
    done = started(tmp_path, *worker, f"--kubeconfig={path}")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{' '.join(('kg', *worker[:1]))}: {said.format(path)}")
    assert done.stdout == ""
    assert not (tmp_path / "made").exists()


def test_neither_a_kubeconfig_nor_a_cluster(tmp_path: Path) -> None:
    done = started(tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "in-cluster configuration" in line and "--kubeconfig" in line
    assert not (tmp_path / "made").exists()


def test_a_group_that_is_not_there_is_refused_before_too(tmp_path: Path) -> None:
    path = written(tmp_path / "kubeconfig", GOOD)
    done = started(tmp_path, f"--kubeconfig={path}", "--control-group=no-such-group")
    assert done.returncode == 2
    assert done.stderr == "kg: --control-group: there is no group 'no-such-group' on this host\n"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("worker", [(), ("watcher",)], ids=str)
def test_an_api_out_of_reach_is_waited_for(tmp_path: Path, worker: tuple[str, ...], interface: str) -> None:
    path = written(tmp_path / "kubeconfig", GOOD)
    flags = [f"--run-dir={tmp_path}/run", f"--state-dir={tmp_path}/state", f"--interface={interface}"]
    flags += ["--cni=false", "--clean-up=false"]
    command = ["unshare", "-n", sys.executable, "-m", "kilo", *worker, f"--kubeconfig={path}", *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        eventually(lambda: (tmp_path / "run/watcher/bus.sock").exists())
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 0


def in_a_child(work: Callable[[], bool]) -> bool:
    """What ``work`` says in a process without rights to pass over permissions."""
    pid = os.fork()
    if not pid:
        status = 2
        try:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            status = int(work())
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1)
    return bool(code)


@pytest.mark.parametrize("where", ["kubeconfig", "closed/kubeconfig"])
def test_what_only_the_watcher_may_read_is_left_to_it(tmp_path: Path, where: str) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "closed").mkdir(0o700)
    path = written(tmp_path / where, "x: [")
    path.chmod(0o600)
    config = Config(kubeconfig=str(path))
    with pytest.raises(PermanentError, match="not YAML"):
        refuse(config)
    assert Look(config).refused()
    assert in_a_child(lambda: not Look(config).refused())


@pytest.mark.timing
def test_a_look_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start is not to depend on it: the watcher's own end would be noticed by its parent."""
    monkeypatch.setattr("kilo.cli.usable.PATIENCE", 0.3)
    fifo = tmp_path / "kubeconfig"
    os.mkfifo(fifo)
    begun = time.monotonic()
    assert not Look(Config(kubeconfig=str(fifo))).refused()
    assert time.monotonic() - begun < bound(2)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
