"""``kg cleanup`` as a command: what an uninstall runs on every node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apiserver.admin import Admin
from tests.apiserver.standin import Standin


@pytest.fixture
def interface() -> Iterator[str]:
    """The name of one; the wireguard-go behind it ends when its socket's file is gone."""
    name = f"kgc{os.getpid() % 100_000}"
    yield name
    Path(f"/run/wireguard/{name}.sock").unlink(missing_ok=True)


def kg(tmp_path: Path, *words: str, before: str = "true") -> subprocess.CompletedProcess[str]:
    """Run a command of kg in a network of its own, or, for the watcher, in this one."""
    command = [sys.executable, "-m", "kilo", *words]
    command += [f"--run-dir={tmp_path}/run", f"--state-dir={tmp_path}/state", "--hostname=own"]
    shell = [
        "sh",
        "-c",
        f'{before} && "$@"; status=$?; ip route show proto 171; ip -br link; exit $status',
        "sh",
    ]
    prefix = ["unshare", "-n"] if "watcher" not in words else []
    return subprocess.run(
        [*prefix, *shell, *command], capture_output=True, text=True, timeout=40, check=False
    )


def test_what_a_killed_agent_left_is_taken_away(tmp_path: Path, interface: str) -> None:
    left = (
        f"ip link set lo up && wireguard-go {interface} >/dev/null 2>&1 && ip link set {interface} up"
        f" && ip address add 10.4.0.1/16 dev {interface}"
        f" && ip route add 10.42.1.0/24 dev {interface} proto 171"
    )
    done = kg(tmp_path, "cleanup", "netctl", f"--interface={interface}", before=left)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout.rpartition("}")[2]
    assert "lo " in shown and interface not in shown and "10.42.1.0" not in shown


def test_the_annotations_are_taken_away_or_it_says_that_they_stay(tmp_path: Path) -> None:
    with Standin() as api:
        admin = Admin(api.url)
        admin.create_node("own", {"kilo.squat.ai/key": "x", "kilo.squat.ai/location": "eu"}, "10.42.0.0/24")
        assert kg(tmp_path, "cleanup", "watcher", f"--master={api.url}").returncode == 0
        assert admin.annotations("own") == {"location": "eu"}
        admin.close()
        url = api.url
    done = kg(tmp_path, "cleanup", "watcher", f"--master={url}")
    assert done.returncode == 1
    assert "kg watcher: the node's annotations were not removed" in done.stderr


def test_only_what_has_something_to_clean_up_may_be_named(tmp_path: Path) -> None:
    done = kg(tmp_path, "cleanup", "mesh")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "'mesh' is not watcher or netctl" in done.stderr
