"""A worker that runs alone: what it may, with and without ``--require-sandbox``."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.sandbox import Status, read_status
from tests.feeding import eventually


@contextlib.contextmanager
def running(tmp_path: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "kilo", "mesh", f"--run-dir={tmp_path}/run", *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: (tmp_path / "run/mesh/bus.sock").exists() or process.poll() is not None)
            yield process
        finally:
            process.kill()


def test_it_is_left_as_it_was_started(tmp_path: Path) -> None:
    own = read_status()
    with running(tmp_path) as process:
        found = read_status(process.pid)
    assert (found.uids, found.effective, found.bounding) == (own.uids, own.effective, own.bounding)
    assert not found.seccomp and not found.no_new_privs


def test_if_asked_it_keeps_its_user_and_gives_up_the_rest(tmp_path: Path) -> None:
    own = read_status()

    def restricted() -> Status | None:
        found = read_status(process.pid)
        return found if found.seccomp else None

    with running(tmp_path, "--require-sandbox") as process:
        found = eventually(restricted)
        assert process.poll() is None
    assert (found.uids, found.groups) == (own.uids, own.groups)
    assert found.effective == found.bounding == ()
    assert found.no_new_privs


def test_and_if_asked_for_it_its_files_too(tmp_path: Path) -> None:
    """What is another worker's is closed to it."""
    (tmp_path / "run/netctl").mkdir(parents=True)
    with running(tmp_path, "--require-sandbox", "--sandbox=full") as process:
        eventually(lambda: read_status(process.pid).seccomp)
        assert process.poll() is None


def test_what_cannot_be_had_ends_it_with_one_line(tmp_path: Path) -> None:
    """Without SETPCAP nothing can be taken out of the bounding set."""
    without = ["setpriv", "--bounding-set=-setpcap", "--inh-caps=-setpcap"]
    command = [sys.executable, "-m", "kilo", "mesh", f"--run-dir={tmp_path}/run", "--require-sandbox"]
    done = subprocess.run([*without, *command], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("kg mesh: the sandbox is not whole: bounding set: ")


@pytest.mark.parametrize("name", ["watcher", "netctl", "cni", "health"])
def test_the_others_take_the_flag_too(tmp_path: Path, name: str, interface: str) -> None:
    flags = [f"--run-dir={tmp_path}/run", f"--state-dir={tmp_path}/state", f"--cni-path={tmp_path}/cni/c"]
    flags += [f"--interface={interface}", "--master=http://127.0.0.1:9", "--listen=127.0.0.1:1199"]
    command = ["unshare", "-n", "timeout", "-s", "TERM", "3", sys.executable, "-m", "kilo", name]
    done = subprocess.run(
        [*command, "--require-sandbox", "--sandbox=full", "--clean-up=false", *flags],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "sandbox" not in done.stderr, done.stderr
    assert done.returncode == 124, "it ran until it was told to end"
