"""What a start, and a start again, do with a configuration that is not good."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import tenacity

from kilo.bus import WORKERS
from kilo.errors import KiloError
from kilo.supervisor.control import Request, ask
from kilo.supervisor.parent import WAITS_AT_MOST
from tests.integration.supervisor.agents import LEFT, Agent, wait

Start = Callable[..., Agent]


@pytest.mark.parametrize("name", ["watcher", "netctl", "mesh"])
def test_one_that_cannot_run_ends_the_program_with_its_message(start: Start, name: str) -> None:
    agent = start(**{name: "permanent"})
    assert agent.process.wait(60) == 2
    assert f"kg {name}: the toy is broken" in agent.log
    assert all(what in ("started", LEFT) for _, _, what in agent.notes)


@pytest.mark.parametrize("name", ["watcher", "health", "cni"])
def test_nothing_is_made_on_the_host_before_all_configuration_is_good(start: Start, name: str) -> None:
    agent = start(**{name: "slow permanent"})
    assert agent.process.wait(60) == 2
    assert "started" not in agent.noted("netctl")


def hold(home: Path, name: str) -> None:
    """Put a pipe where a toy looks what it is told: it stands still there, until ``standing`` is over."""
    pipe = home / f"{name}.pipe"
    os.mkfifo(pipe)
    pipe.rename(home / name)


@contextlib.contextmanager
def standing(home: Path, name: str) -> Iterator[None]:
    """From when a toy has come to the pipe of ``hold``; then it goes on, to what is there by then."""
    ends: list[int] = []

    def come() -> list[int]:
        with contextlib.suppress(OSError):  # nobody reads it yet
            ends.append(os.open(home / name, os.O_WRONLY | os.O_NONBLOCK))
        return ends

    wait(come)
    try:
        yield
    finally:
        os.close(ends[0])


def test_a_check_that_takes_long_holds_nothing_up(start: Start, tmp_path: Path) -> None:
    hold(tmp_path, "watcher")
    begun = time.monotonic()
    agent = start(hurry=True)
    for _ in range(2):  # it looks as it loads its code, and as it is made
        with standing(tmp_path, "watcher"):
            hold(tmp_path, "watcher")
    with standing(tmp_path, "watcher"):
        assert agent.noted("watcher") == ["started"]
        wait(lambda: "started" in agent.noted("netctl"))
        (let_go,) = [float(when) for when, name, _ in agent.notes if name == "netctl"]
        assert let_go - begun > WAITS_AT_MOST / 5 - 0.001, "the watcher was waited for"
        assert "watcher" not in agent.pids()
        agent.order("watcher", "")
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    links = done.stdout.partition("status 2")[2]
    assert "lo " in links, done.stdout
    assert "kgt0" not in links
    (said,) = done.stderr.splitlines()
    assert str(tmp_path / ("nothing" if fault == "kubeconfig" else "key")) in said


def test_code_that_is_closed_to_workers_is_told_at_the_start_and_of_the_worker(tmp_path: Path) -> None:
    """The real agent, in a network namespace; what only the watcher loads is in a directory of root's."""
    vendor = tmp_path / "vendor"
    package = Path(tenacity.__file__).parent
    shutil.copytree(package, vendor / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    vendor.chmod(0o700)
    flags = [f"--run-dir={tmp_path}/run", f"--cni-path={tmp_path}/c", "--interface=kgt0", "--cni=false"]
    flags += [f"--state-dir={tmp_path}/state", "--master=http://127.0.0.1:9", "--create-interface=false"]
    command = ["unshare", "-n", sys.executable, "-m", "kilo", *flags]
    environment = {**os.environ, "PYTHONPATH": f"{vendor}:{os.getcwd()}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            lines = map(msgspec.json.decode, process.stdout)
            told = next(line for line in lines if "closed to workers" in line["msg"])
            assert (told["level"], told["component"], told["paths"]) == ("warn", "parent", [str(vendor)])
            said = next(line for line in lines if "cannot load its code" in line["msg"])
            assert (said["level"], said["component"]) == ("error", "watcher")
            wait(lambda: str(vendor) in errors(tmp_path / "run").get("watcher", ""))
            assert "exit status 3" in errors(tmp_path / "run")["watcher"]
            assert errors(tmp_path / "run")["mesh"] == ""
        finally:
            process.send_signal(signal.SIGHUP)
    assert process.returncode == 0


def errors(run_dir: Path) -> dict[str, str]:
    """The last error of each worker, as the parent has it."""
    with contextlib.suppress(KiloError):
        return {w.worker: w.last_error for w in ask(str(run_dir), Request("status"), 30).workers}
    return {}
