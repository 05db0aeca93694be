"""The parent over real processes, whose work is a toy."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kilo.bus import WORKERS
from kilo.errors import KiloError
from kilo.supervisor.control import Reply, Request, ask


class Agent:
    """A running parent and what its toys noted."""

    def __init__(self, home: Path, orders: dict[str, str]) -> None:
        self.run_dir, self.home = home / "run", home
        for name, order in orders.items():
            (home / name).write_text(order)
        with (home / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.unit.supervisor.toys", str(self.run_dir), str(home)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def notes(self) -> list[list[str]]:
        path = self.home / "notes"
        return [line.split(maxsplit=2) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def ask(self, command: str, worker: str = "") -> Reply:
        return ask(str(self.run_dir), Request(command, worker), 30)

    def pids(self) -> dict[str, int]:
        with contextlib.suppress(KiloError):
            return {w.worker: w.pid for w in self.ask("status").workers if w.state == "ready"}
        return {}

    def all_ready(self) -> dict[str, int]:
        wait(lambda: len(self.pids()) == len(WORKERS))
        return self.pids()

    def end(self) -> None:
        if self.process.poll() is None:
            for pid in self.pids().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.kill()
        self.process.wait()


def wait(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def start_agent(**orders: str) -> Agent:
        agents.append(Agent(tmp_path, orders))
        return agents[-1]

    yield start_agent
    for agent in agents:
        agent.end()


def test_starts_all_and_ends_them_in_order(start: Callable[..., Agent]) -> None:
    agent = start()
    pids = agent.all_ready()
    assert sorted(pids) == sorted(WORKERS)
    assert Path(f"/proc/{pids['mesh']}/comm").read_text() == "kg-mesh\n"
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(20) == 0
    order = [name for _, name, what in agent.notes if what == "stopped clean_up=True"]
    assert set(order[:2]) == {"watcher", "cni"}
    assert order[2] == "netctl"
    assert set(order[3:]) == {"mesh", "health"}
    assert not any(alive(pid) for pid in pids.values())


def test_a_killed_worker_is_started_again_and_the_others_are_left_alone(start: Callable[..., Agent]) -> None:
    agent = start()
    before = agent.all_ready()
    os.kill(before["mesh"], signal.SIGKILL)
    begun = time.monotonic()
    wait(lambda: agent.pids().get("mesh", before["mesh"]) != before["mesh"])
    assert time.monotonic() - begun < 3
    after = agent.all_ready()
    assert {n: p for n, p in after.items() if n != "mesh"} == {n: p for n, p in before.items() if n != "mesh"}
    mesh = next(w for w in agent.ask("status").workers if w.worker == "mesh")
    assert mesh.restarts == 1
    assert "killed by signal 9" in mesh.last_error


def test_a_crashing_worker_is_tried_again_with_growing_waits(
    start: Callable[..., Agent], tmp_path: Path
) -> None:
    agent = start(cni="crash")
    wait(lambda: len([n for n in agent.notes if n[1] == "cni"]) >= 5)
    times = [float(n[0]) for n in agent.notes if n[1] == "cni"]
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert waits[3] > waits[0]
    (tmp_path / "cni").write_text("")
    agent.all_ready()


def test_a_worker_that_hangs_is_killed_and_started_again(start: Callable[..., Agent], tmp_path: Path) -> None:
    agent = start(health="hang")
    wait(lambda: any(n[1] == "health" for n in agent.notes))
    (tmp_path / "health").write_text("")
    wait(lambda: "hung: no heartbeat" in agent.log, 30)
    pids = agent.all_ready()
    assert len(pids) == len(WORKERS)


def test_one_that_cannot_be_helped_ends_the_program_with_its_message(start: Callable[..., Agent]) -> None:
    agent = start(netctl="permanent")
    assert agent.process.wait(20) == 2
    assert "kg netctl: the toy is broken" in agent.log
    assert all(what in ("started", "stopped clean_up=False") for _, _, what in agent.notes)


def test_when_the_parent_is_killed_the_workers_end_without_clean_up(start: Callable[..., Agent]) -> None:
    agent = start()
    pids = agent.all_ready()
    agent.process.kill()
    wait(lambda: not any(alive(pid) for pid in pids.values()), 5)
    stops = [what for _, _, what in agent.notes if what.startswith("stopped")]
    assert stops == ["stopped clean_up=False"] * len(WORKERS)


def test_restart_waits_until_the_new_one_is_ready(start: Callable[..., Agent]) -> None:
    agent = start()
    before = agent.all_ready()
    reply = agent.ask("restart", "watcher")
    assert reply.error == ""
    assert 0 < reply.seconds["watcher"] < 5
    after = agent.pids()
    assert after["watcher"] != before["watcher"]
    assert after["mesh"] == before["mesh"]
    assert [w for _, n, w in agent.notes if n == "watcher"][:2] == ["started", "stopped clean_up=False"]
    assert sorted(agent.ask("restart", "all").seconds) == sorted(WORKERS)
    assert "there is no worker 'cook'" in agent.ask("restart", "cook").error
    assert "unknown command" in agent.ask("dance").error


def test_a_worker_that_does_not_end_for_its_restart_is_killed(start: Callable[..., Agent]) -> None:
    agent = start(mesh="stuck-at-end")
    agent.all_ready()
    reply = agent.ask("restart", "mesh")
    assert reply.error == ""
    assert 4 < reply.seconds["mesh"] < 10


def test_sighup_ends_it_without_clean_up_and_leaves_no_file(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.all_ready()
    assert list(agent.run_dir.glob("pymp-*")) != []
    agent.process.send_signal(signal.SIGHUP)
    assert agent.process.wait(20) == 0
    stops = [what for _, _, what in agent.notes if what.startswith("stopped")]
    assert stops == ["stopped clean_up=False"] * len(WORKERS)
    assert [p for p in agent.run_dir.iterdir() if p.name not in WORKERS] == []


def test_what_a_killed_parent_left_is_gone_after_the_next(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.all_ready()
    left = set(agent.run_dir.glob("pymp-*"))
    agent.process.kill()
    agent.process.wait()
    again = start()
    again.all_ready()
    assert left
    assert not left & set(agent.run_dir.glob("pymp-*"))


def test_a_second_signal_does_not_wait(start: Callable[..., Agent]) -> None:
    agent = start(watcher="stuck-at-end")
    pids = agent.all_ready()
    agent.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert agent.process.poll() is None
    begun = time.monotonic()
    agent.process.send_signal(signal.SIGINT)
    assert agent.process.wait(5) == 1
    assert time.monotonic() - begun < 3
    wait(lambda: not any(alive(pid) for pid in pids.values()), 3)


def test_a_worker_that_does_not_end_is_killed_and_the_rest_still_cleans_up(
    start: Callable[..., Agent],
) -> None:
    agent = start(watcher="stuck-at-end")
    agent.all_ready()
    begun = time.monotonic()
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(25) == 0
    assert time.monotonic() - begun < 20
    assert ["netctl", "stopped clean_up=True"] in [n[1:] for n in agent.notes]


def test_the_process_that_starts_workers_may_die(start: Callable[..., Agent]) -> None:
    agent = start()
    before = agent.all_ready()
    parent = Path(f"/proc/{before['mesh']}/stat").read_text().rsplit(")", 1)[1].split()[1]
    os.kill(int(parent), signal.SIGKILL)
    wait(lambda: "starts workers ended" in agent.log)
    agent.ask("restart", "mesh")
    pids = agent.all_ready()
    for name in ("watcher", "mesh", "netctl"):
        os.kill(pids[name], signal.SIGKILL)
        wait(lambda name=name, pids=pids: agent.pids().get(name, pids[name]) != pids[name])  # type: ignore[misc]
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(20) == 0


def test_orphans_are_reaped(start: Callable[..., Agent], tmp_path: Path) -> None:
    script = (
        "import ctypes, os, runpy, sys\n"
        "ctypes.CDLL(None).prctl(36, 1)\n"  # PR_SET_CHILD_SUBREAPER: what PID 1 of a container is
        "if os.fork() == 0:\n"
        "    if os.fork() == 0: os.execvp('sleep', ['sleep', '1.234'])\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "sys.argv[:] = ['toys', *sys.argv[1:]]\n"
        "runpy.run_module('tests.unit.supervisor.toys', run_name='__main__')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run"), str(tmp_path)])
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def sleepers() -> list[str]:
            names = []
            for pid in children.read_text().split():
                with contextlib.suppress(OSError):
                    names.append(Path(f"/proc/{pid}/comm").read_text().strip())
            return [n for n in names if n == "sleep"]

        wait(sleepers)
        wait(lambda: not sleepers(), 10)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_second_parent_in_the_same_place_is_refused(start: Callable[..., Agent], tmp_path: Path) -> None:
    agent = start()
    agent.all_ready()
    second = subprocess.run(
        [sys.executable, "-m", "kilo", "--run-dir", str(agent.run_dir), "--hostname=x"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 2
    assert "another kg runs here" in second.stderr
    assert len(agent.pids()) == len(WORKERS)
