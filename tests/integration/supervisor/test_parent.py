"""The parent over real processes, whose work is a toy."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kilo.bus import WORKERS
from kilo.errors import KiloError
from kilo.supervisor.backoff import FIRST, JITTER
from kilo.supervisor.control import Request, ask
from tests.clock import bound
from tests.integration.supervisor.agents import CLEAN, LEFT, Agent, alive, below, wait


@pytest.mark.timing
def test_a_killed_worker_is_started_again_and_the_others_are_left_alone(start: Callable[..., Agent]) -> None:
    agent = start()
    before = agent.all_ready()
    os.kill(before["mesh"], signal.SIGKILL)
    begun = time.monotonic()
    wait(lambda: agent.pids().get("mesh", before["mesh"]) != before["mesh"])
    assert time.monotonic() - begun < bound(3)
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
    for n, waited in enumerate(waits):
        assert waited >= FIRST * 2**n * (1 - JITTER) - 0.001, "notes have milliseconds"
    (tmp_path / "cni").write_text("")
    agent.all_ready()


def test_a_worker_that_hangs_is_killed_and_started_again(start: Callable[..., Agent], tmp_path: Path) -> None:
    agent = start(hurry=True, health="hang")
    wait(lambda: any(n[1] == "health" for n in agent.notes))
    (tmp_path / "health").write_text("")
    wait(lambda: agent.logged("hung: no heartbeat"), 30)
    killed = agent.logged("hung: no heartbeat")[0]
    assert killed["worker"] == "health"
    wait(lambda: agent.pids().get("health", killed["pid"]) != killed["pid"])
    agent.all_ready()


def test_when_the_host_stood_still_nobody_counts_as_hung(start: Callable[..., Agent]) -> None:
    """All processes of a container that is paused stop at once. Heartbeats are limited to 3 s here."""
    agent = start(hurry=True)
    pids = agent.all_ready()
    everybody = [agent.process.pid, *pids.values()]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(6)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    wait(lambda: agent.logged("not running for a while"))
    time.sleep(2)
    assert agent.all_ready() == pids
    assert "hung" not in agent.log


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


def empty(run_dir: Path) -> None:
    for path in run_dir.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_run_dir_that_is_gone_is_made_again(start: Callable[..., Agent], tmp_path: Path) -> None:
    agent = start()
    before = agent.all_ready()
    agent.run_dir.rename(tmp_path / "away")  # at once: the parent looks every second
    wait(lambda: agent.logged("made again"), 3)
    wait(
        lambda: len(agent.pids()) == len(WORKERS) and not set(agent.pids().values()) & set(before.values()), 5
    )
    wait(lambda: all((agent.run_dir / name / "bus.sock").exists() for name in WORKERS), 5)
    wait(lambda: len(agent.noted("netctl")) == 3, 10)
    assert agent.noted("netctl") == ["started", LEFT, "started"]
    assert agent.terminate() == 0
    assert [what for _, _, what in agent.notes][-5:] == [CLEAN] * 5


def test_it_makes_way_for_another_one_that_took_its_run_dir(start: Callable[..., Agent]) -> None:
    first = start()
    first.all_ready()
    first.process.send_signal(signal.SIGSTOP)
    empty(first.run_dir)
    second = start()
    wait(lambda: second.pids())
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(60) == 1
    assert first.logged("another kg runs here")
    assert CLEAN not in [what for _, _, what in first.notes]
    second.all_ready()


def test_a_worker_that_does_not_end_for_its_restart_is_killed(start: Callable[..., Agent]) -> None:
    agent = start(hurry=True, mesh="stuck-at-end")
    agent.all_ready()
    reply = agent.ask("restart", "mesh")
    assert reply.error == ""
    assert 0.9 < reply.seconds["mesh"] < 4


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


def test_beside_the_workers_there_is_only_what_forks_them(start: Callable[..., Agent]) -> None:
    agent = start()
    workers = agent.all_ready()
    assert set(below(agent.process.pid)) == {*workers.values(), forkserver_of(workers)}


def test_what_all_workers_share_is_loaded_once_and_stays_shared() -> None:
    """A collector that looks at an object writes to it."""
    look = (
        "import gc, sys\n"
        "from kilo.supervisor.forkserver import PRELOAD\n"
        "for name in PRELOAD: __import__(name)\n"
        "shared = {'kilo.worker', 'kilo.bus', 'kilo.sandbox.entry', 'multiprocessing.spawn'}\n"
        "print(shared <= sys.modules.keys(), gc.get_freeze_count() > 10_000, len(gc.get_objects()) < 1_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, timeout=90, check=True
    )
    assert done.stdout.split() == ["True", "True", "True"]


def test_the_process_that_starts_workers_may_die(start: Callable[..., Agent]) -> None:
    agent = start()
    before = agent.all_ready()
    os.kill(forkserver_of(before), signal.SIGKILL)
    wait(lambda: "starts workers ended" in agent.log)
    agent.ask("restart", "mesh")
    pids = agent.all_ready()
    for name in ("watcher", "mesh", "netctl"):
        os.kill(pids[name], signal.SIGKILL)
        wait(lambda name=name, pids=pids: agent.pids().get(name, pids[name]) != pids[name])  # type: ignore[misc]
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(60) == 0


@pytest.mark.parametrize("seconds", ["0", "600"], ids=["before it runs", "at work"])
def test_orphans_are_reaped(tmp_path: Path, seconds: str) -> None:
    script = (
        "import ctypes, os, runpy, sys\n"
        "lasts = sys.argv.pop()\n"
        "ctypes.CDLL(None).prctl(36, 1)\n"  # PR_SET_CHILD_SUBREAPER: what PID 1 of a container is
        "if os.fork() == 0:\n"
        "    if os.fork() == 0: os.execvp('sleep', ['sleep', lasts])\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "if lasts == '0': os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)\n"  # it has ended
        "sys.argv[:] = ['toys', *sys.argv[1:]]\n"
        "runpy.run_module('tests.integration.supervisor.toys', run_name='__main__')\n"
    )
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", script, str(run_dir), str(tmp_path), seconds]
    process = subprocess.Popen(command)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def sleepers() -> list[int]:
            found = []
            for pid in children.read_text().split():
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == "sleep":
                        found.append(int(pid))
            return found

        def serves() -> bool:
            with contextlib.suppress(KiloError):
                return bool(ask(str(run_dir), Request("status"), 30).workers)
            return False

        wait(serves)
        if seconds != "0":
            wait(sleepers)
            os.kill(sleepers()[0], signal.SIGKILL)
        wait(lambda: not sleepers(), 10)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_second_parent_in_the_same_place_is_refused(start: Callable[..., Agent], tmp_path: Path) -> None:
    agent = start()
    agent.all_ready()
    flags = ["--run-dir", str(agent.run_dir), "--hostname=x", "--master=http://127.0.0.1:9"]
    second = subprocess.run(
        [sys.executable, "-m", "kilo", *flags],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert second.returncode == 2
    assert "another kg runs here" in second.stderr
    assert len(agent.pids()) == len(WORKERS)


def test_what_follows_a_request_is_no_second_one(
    start: Callable[..., Agent],
) -> None:
    agent = start()
    before = agent.all_ready()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(20)
        client.connect(str(agent.run_dir / "control.sock"))
        os.kill(before["mesh"], signal.SIGSTOP)  # it would end before more is said
        client.sendall(b'{"command": "restart", "worker": "mesh"}\n')
        wait(lambda: agent.logged("restart asked for"))
        client.sendall(b"and more\n")
        os.kill(before["mesh"], signal.SIGCONT)
        assert b'"seconds":{"mesh":' in client.makefile("rb").readline()
    assert agent.noted("mesh") == ["started", LEFT, "started"]
    assert agent.pids() != before


def test_orphans_are_reaped_while_the_forkserver_is_dead(start: Callable[..., Agent]) -> None:
    agent = start()
    before = agent.all_ready()
    os.kill(forkserver_of(before), signal.SIGKILL)
    wait(lambda: agent.logged("starts workers ended"))
    os.kill(before["cni"], signal.SIGKILL)
    wait(lambda: agent.pids().get("cni", before["cni"]) != before["cni"])
    zombies = [pid for pid in below(agent.process.pid) if not alive(pid)]
    assert zombies == []


def test_a_worker_has_no_descriptor_that_it_does_not_need(
    start: Callable[..., Agent], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    with canary.open("w") as held:
        os.set_inheritable(held.fileno(), True)
        agent = start()
        for name, pid in agent.all_ready().items():
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert str(canary) not in links
            others = [link for link in links if "pidfd" in link or "lock" in link]
            assert others == [str(agent.run_dir / name / "lock")]


def test_signals_are_not_blocked_in_what_workers_start(start: Callable[..., Agent]) -> None:
    agent = start()
    for pid in agent.all_ready().values():
        status = Path(f"/proc/{pid}/status").read_text()
        assert "SigBlk:\t0000000000000000" in status


def forkserver_of(pids: dict[str, int]) -> int:
    return int(Path(f"/proc/{pids['mesh']}/stat").read_text().rsplit(")", 1)[1].split()[1])
