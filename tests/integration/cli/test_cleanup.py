"""``kg cleanup`` as a command: what an uninstall runs on every node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kilo.log import Logger
from kilo.netctl.sole import Claim
from tests.apiserver.admin import Admin
from tests.apiserver.standin import Standin


def kg(
    tmp_path: Path, *words: str, before: str = "true", network: str = "new"
) -> subprocess.CompletedProcess[str]:
    """Run a command of kg in a ``new`` network, or in its ``own``, where the API server is."""
    command = [sys.executable, "-m", "kilo", *words]
    command += [f"--run-dir={tmp_path}/run", f"--state-dir={tmp_path}/state", "--hostname=own"]
    shell = [
        "sh",
        "-c",
        f'{before} && "$@"; status=$?; ip route show proto 171; ip -br link; exit $status',
        "sh",
    ]
    prefix = ["unshare", "-n"] if network == "new" else []
    return subprocess.run(
        [*prefix, *shell, *command], capture_output=True, text=True, timeout=90, check=False
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
        assert kg(tmp_path, "cleanup", "watcher", f"--master={api.url}", network="own").returncode == 0
        assert admin.annotations("own") == {"location": "eu"}
        admin.close()
        url = api.url
    done = kg(tmp_path, "cleanup", "watcher", f"--master={url}", network="own")
    assert done.returncode == 1
    assert "kg watcher: the node's annotations were not removed" in done.stderr


@pytest.mark.parametrize("words", [[], ["watcher"]])
def test_nothing_is_done_while_an_agent_has_the_interface(
    tmp_path: Path, interface: str, words: list[str]
) -> None:
    with Standin() as api:
        admin = Admin(api.url)
        admin.create_node("own", {"kilo.squat.ai/key": "x"}, "10.42.0.0/24")
        claim = Claim(interface, Logger("netctl", "none"))
        done = kg(tmp_path, "cleanup", *words, "--interface", interface, f"--master={api.url}", network="own")
        claim.close()
        assert done.returncode == 1
        assert f"another netctl (pid {os.getpid()}) has the interface {interface}" in done.stderr
        assert admin.annotations("own") == {"key": "x"}
        admin.close()


def test_only_what_has_something_to_clean_up_may_be_named(tmp_path: Path) -> None:
    done = kg(tmp_path, "cleanup", "mesh")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "'mesh' is not watcher or netctl" in done.stderr
