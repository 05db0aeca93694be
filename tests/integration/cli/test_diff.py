"""``kg plan --diff`` where there is nothing to compare with, and from files. What it finds on a host is
in tests/integration/netctl/test_diff.py."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from kilo.bus import PLAN, state_of
from kilo.model.host import WorkerState
from tests.clock import bound
from tests.feeding import Bus
from tests.unit.cli.test_plan import NODES, NOW, write
from tests.unit.netctl.plans import mesh


def diff(*flags: str, before: str = "", tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run it in a network of its own."""
    command = [sys.executable, "-m", "kilo", "plan", "--diff", f"--run-dir={tmp_path}/run"]
    command += [f"--state-dir={tmp_path}/state", *flags]
    inside = ["unshare", "-n", "sh", "-c", f'{before or "true"} && exec "$@"', "sh", *command]
    return subprocess.run(inside, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.timing
def test_without_an_agent(tmp_path: Path) -> None:
    began = time.monotonic()
    done = diff(tmp_path=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"kg plan: nobody publishes a plan in {tmp_path}/run" in done.stderr
    assert time.monotonic() - began < bound(8)


def test_without_the_right_to_look(tmp_path: Path) -> None:
    done = diff(before='set -- setpriv --bounding-set=-net_admin "$@"', tmp_path=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert "CAP_NET_ADMIN" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-o=routes"], "-o: 'routes' is not allowed with --diff"),
        (["-o=yaml"], "'yaml' is not allowed"),
        (["--peers=/dev/null"], "--peers needs --nodes"),
        (["--diff=perhaps"], "'perhaps' is not allowed"),
        (["--private-key=/nowhere/key"], "--private-key /nowhere/key: No such file"),
        (["routes"], "'routes' is not expected here"),
    ],
)
def test_bad_usage(flags: list[str], said: str, tmp_path: Path) -> None:
    done = diff(*flags, tmp_path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_text_is_no_format_of_a_plan(tmp_path: Path) -> None:
    done = diff("--diff=false", "-o=text", *write(tmp_path, nodes=NODES), tmp_path=tmp_path)
    assert done.returncode == 2 and "'text' is not allowed without --diff" in done.stderr


def test_flags_that_are_not_the_agents(tmp_path: Path) -> None:
    bus = Bus(tmp_path / "run")
    try:
        state = WorkerState("netctl", 1, 0.0, "ready", 1, info={"interface": "wg9"})
        bus.put(state_of("netctl"), state=state)
        bus.update(PLAN, mesh(1))
        done = diff(tmp_path=tmp_path)
        assert done.returncode == 2
        assert "--interface is kilo0, and the agent's is wg9: give it the agent's flags" in done.stderr
        assert diff("--interface=wg9", tmp_path=tmp_path).returncode == 1
    finally:
        bus.close()


def test_a_plan_from_files_on_this_host(tmp_path: Path) -> None:
    """The node is planned as the agent would here: by this host's addresses, not by its annotations."""
    link = "ip link add eth0 type veth peer name far && ip addr add 10.7.0.5/24 dev eth0"
    link += " && ip link set far up && ip link set eth0 up"
    files = write(tmp_path, nodes=NODES)
    flags = [*files, f"--at={NOW}", "--hostname=a", "--mesh-granularity=full", "--firewall=nftables"]
    done = diff(*flags, before=link, tmp_path=tmp_path)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert "+ link kilo0 type wireguard mtu 1420 up" in lines
    assert "+ route 10.2.2.0/24 via 10.4.0.2 dev kilo0 src 10.7.0.5 onlink" in lines
    assert not (tmp_path / "state").exists()
    none = diff(*files, f"--at={NOW}", "--hostname=c", before=link, tmp_path=tmp_path)
    assert none.returncode == 2 and "no node is named 'c'" in none.stderr
