"""The real workers that have something to clean up, when they are started for that alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kilo.leash import CLEANED, END
from tests.apiserver.admin import Admin
from tests.apiserver.standin import Standin

RUN = """
import json, os, socket, sys
from kilo.config import Config
from kilo.supervisor.child import run_worker

ours, theirs = socket.socketpair()
ours.send(sys.argv[2].encode())
status = run_worker(sys.argv[1], Config(**json.loads(sys.argv[3])), theirs.fileno())
theirs.close()
print("said", ours.recv(64))
sys.exit(status)
"""


def clean_up(name: str, tmp_path: Path, *before: str, **flags: object) -> str:
    """Start a worker, after commands of the shell, with END as its first order; its output, and theirs."""
    values = {"run_dir": f"{tmp_path}/run", "state_dir": f"{tmp_path}/state", "hostname": "own", **flags}
    command = [sys.executable, "-c", RUN, name, END.decode(), json.dumps(values)]
    script = " && ".join([*before, '"$@"', "ip -br address", "ip route show table all proto 171"])
    prefix = ["unshare", "-n"] if name == "netctl" else []
    done = subprocess.run(
        [*prefix, "sh", "-c", script, "sh", *command], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"said {CLEANED!r}" in done.stdout
    return done.stdout


@pytest.mark.parametrize("remove", [False, True])
def test_netctl_takes_away_what_an_earlier_run_left(tmp_path: Path, interface: str, remove: bool) -> None:
    said = clean_up(
        "netctl",
        tmp_path,
        "ip link set lo up",
        f"wireguard-go {interface} >/dev/null 2>&1",
        f"ip link set {interface} up",
        f"ip address add 10.4.0.1/16 dev {interface}",
        f"ip route add 10.42.1.0/24 dev {interface} proto 171",
        interface=interface,
        clean_up_interface=remove,
    )
    left = said.partition("said")[2]
    assert "lo " in left
    assert "10.4.0.1" not in left and "10.42.1.0" not in left
    assert (interface in left) != remove


def test_netctl_makes_nothing(tmp_path: Path, interface: str) -> None:
    said = clean_up("netctl", tmp_path, "ip link set lo up", interface=interface)
    assert interface not in said.partition("said")[2]


def test_the_watcher_takes_the_annotations_away(tmp_path: Path) -> None:
    with Standin() as api:
        admin = Admin(api.url)
        admin.create_node("own", {"kilo.squat.ai/key": "x", "kilo.squat.ai/location": "eu"}, "10.42.0.0/24")
        clean_up("watcher", tmp_path, master=api.url)
        assert admin.annotations("own") == {"location": "eu"}
        assert [r.method for r in api.requests if "kg/" in r.headers.get("user-agent", "")] == ["PATCH"]
        admin.close()
