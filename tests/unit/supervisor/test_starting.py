"""What a start, and a start again, do with a configuration that is not good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kilo.bus import WORKERS
from tests.unit.supervisor.agents import LEFT, Agent, wait

Start = Callable[..., Agent]


@pytest.mark.parametrize("name", ["watcher", "netctl", "mesh"])
def test_one_that_cannot_run_ends_the_program_with_its_message(start: Start, name: str) -> None:
    agent = start(**{name: "permanent"})
    assert agent.process.wait(20) == 2
    assert f"kg {name}: the toy is broken" in agent.log
    assert all(what in ("started", LEFT) for _, _, what in agent.notes)


@pytest.mark.parametrize("name", ["watcher", "health", "cni"])
def test_nothing_is_made_on_the_host_before_all_configuration_is_good(start: Start, name: str) -> None:
    agent = start(**{name: "slow permanent"})
    assert agent.process.wait(20) == 2
    assert "started" not in agent.noted("netctl")


def test_a_check_that_takes_long_holds_nothing_up(start: Start) -> None:
    agent = start(hurry=True, watcher="slow-at-start")
    wait(lambda: "started" in agent.noted("watcher"))
    assert agent.noted("netctl") == []
    wait(lambda: "started" in agent.noted("netctl"))
    assert "watcher" not in agent.pids()
    agent.all_ready()


@pytest.mark.parametrize("before", ["", "never-ready"])
def test_one_that_has_run_and_then_cannot_is_tried_again(start: Start, before: str) -> None:
    agent = start(watcher=before)
    wait(lambda: len(agent.pids()) == len(WORKERS) - bool(before))
    pid = next(w.pid for w in agent.ask("status").workers if w.worker == "watcher")
    agent.order("watcher", "permanent")
    os.kill(pid, signal.SIGKILL)
    wait(lambda: agent.noted("watcher").count("started") >= 4)
    (state,) = [w for w in agent.ask("status").workers if w.worker == "watcher"]
    assert "exit status 2" in state.last_error
    agent.order("watcher", "")
    agent.all_ready()
    assert agent.terminate() == 0


@pytest.mark.parametrize("fault", ["kubeconfig", "key"])
def test_a_fault_of_the_configuration_leaves_no_interface(tmp_path: Path, fault: str) -> None:
    """The real agent, in a network namespace."""
    (tmp_path / "key").write_text("damaged")
    flags = [f"--run-dir={tmp_path}/run", f"--cni-path={tmp_path}/c", "--interface=kgt0"]
    if fault == "kubeconfig":
        flags += [f"--kubeconfig={tmp_path}/nothing", f"--state-dir={tmp_path}/new"]
    else:
        flags += ["--master=http://127.0.0.1:9", f"--state-dir={tmp_path}"]
    script = 'timeout -s KILL 20 "$0" -m kilo "$@"; echo "status $?"; ip -br link'
    command = ["unshare", "-n", "sh", "-c", script, sys.executable, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    links = done.stdout.partition("status 2")[2]
    assert "lo " in links, done.stdout
    assert "kgt0" not in links
    (said,) = done.stderr.splitlines()
    assert str(tmp_path / ("nothing" if fault == "kubeconfig" else "key")) in said
