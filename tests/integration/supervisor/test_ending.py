"""How the agent ends: on whose word, in which order, how fast, and what is cleaned up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kilo.bus import WORKERS
from kilo.errors import TemporaryError
from kilo.supervisor import ending
from tests.clock import Given, bound
from tests.integration.supervisor.agents import CLEAN, LEFT, TOYS, Agent, alive, children, wait
from tests.integration.supervisor.toys import hurried

Start = Callable[..., Agent]
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def stops(agent: Agent) -> list[tuple[str, str]]:
    return [(name, what) for _, name, what in agent.notes if what.startswith("stopped")]


def in_order(agent: Agent) -> None:
    """All have cleaned up, once, and in the order of the stages."""
    assert [what for _, what in stops(agent)] == [CLEAN] * len(WORKERS)
    order = [name for name, _ in stops(agent)]
    assert (set(order[:2]), order[2], set(order[3:])) == ({"watcher", "cni"}, "netctl", {"mesh", "health"})


def forget(agent: Agent) -> None:
    """What its toys noted, so that one more can be looked at in its place."""
    (agent.home / "notes").unlink()


@pytest.mark.timing
@BOTH
def test_told_to_end_it_ends_all_in_order_and_at_once(start: Start, number: int) -> None:
    agent = start()
    pids = agent.all_ready()
    assert sorted(pids) == sorted(WORKERS)
    with Given() as clock:
        assert agent.terminate(number) == 0
    assert clock.seconds < bound(0.9)
    in_order(agent)
    assert not any(alive(pid) for pid in pids.values())
    assert agent.logged("ended")[-1]["component"] == "parent", "the last line is written"


@BOTH
def test_a_signal_to_the_whole_group_is_the_parents_alone(start: Start, number: int) -> None:
    agent = start()
    agent.all_ready()
    os.killpg(agent.process.pid, number)
    assert agent.process.wait(60) == 0
    in_order(agent)


def test_a_signal_that_comes_twice_within_a_moment_is_one(start: Start) -> None:
    """One that is handled later than within a moment is a second one: then it is tried again."""
    for _ in range(5):
        agent = start()
        agent.all_ready()
        agent.process.send_signal(signal.SIGTERM)
        os.killpg(agent.process.pid, signal.SIGTERM)  # as timeout(1) does
        os.killpg(agent.process.pid, signal.SIGINT)
        if agent.process.wait(60) == 0:
            break
        forget(agent)
    assert agent.process.returncode == 0
    in_order(agent)


def test_a_signal_to_the_group_does_not_end_what_starts_workers(start: Start) -> None:
    agent = start()
    agent.all_ready()
    started = [pid for pid in children(agent.process.pid) if alive(pid)]
    assert len(started) == 1, "the forkserver"
    for pid in started:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    time.sleep(0.3)
    assert [pid for pid in children(agent.process.pid) if alive(pid)] == started
    assert agent.terminate() == 0


def test_where_another_agent_does_the_work_nothing_is_cleaned_up(start: Start) -> None:
    """Not its annotations either: they are the other one's, and others would stop sending to it."""
    agent = start(netctl="taken")
    wait(lambda: "another toy does this" in agent.log)
    wait(lambda: len(agent.pids()) == len(WORKERS) - 1)
    assert agent.terminate() == 0
    assert {what for _, what in stops(agent)} == {LEFT}
    assert agent.logged("another agent has this host")


def test_one_whose_predecessor_ended_late_cleans_up_as_ever(start: Start) -> None:
    agent = start(netctl="taken")
    wait(lambda: "another toy does this" in agent.log)
    agent.order("netctl", "")
    agent.all_ready()
    assert agent.terminate() == 0
    in_order(agent)


@pytest.mark.timing
def test_a_second_signal_does_not_wait(start: Start) -> None:
    agent = start(watcher="stuck-at-end")
    pids = agent.all_ready()
    agent.process.send_signal(signal.SIGTERM)
    wait(lambda: agent.logged("ending"))
    time.sleep(0.4)
    assert agent.process.poll() is None
    with Given() as clock:
        assert agent.terminate(signal.SIGINT, 5) == 1
    assert clock.seconds < bound(1)
    assert agent.logged("second signal")
    assert not agent.logged("did not end in time")
    wait(lambda: not any(alive(pid) for pid in pids.values()))
    assert {line["worker"] for line in agent.logged("not cleaned up")} == {"watcher", "netctl"}


def test_a_signal_of_somebody_else_to_a_worker_restarts_it_without_clean_up(start: Start) -> None:
    agent = start()
    before = agent.all_ready()
    os.kill(before["netctl"], signal.SIGTERM)
    wait(lambda: agent.pids().get("netctl", before["netctl"]) != before["netctl"])
    assert agent.noted("netctl") == ["started", LEFT, "started"]
    assert agent.terminate() == 0
    assert [what for name, what in stops(agent) if name == "netctl"] == [LEFT, CLEAN]


def test_sighup_ends_it_without_clean_up_and_leaves_no_file(start: Start) -> None:
    agent = start()
    agent.all_ready()
    assert list(agent.run_dir.glob("pymp-*")) != []
    assert agent.terminate(signal.SIGHUP) == 0
    assert [what for _, what in stops(agent)] == [LEFT] * len(WORKERS)
    assert [p for p in agent.run_dir.iterdir() if p.name not in WORKERS] == []


@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_a_worker_that_is_not_ready_for_signals_yet_cleans_up_all_the_same(
    start: Start, delay: float
) -> None:
    agent = start(netctl="slow", watcher="slow")
    wait(lambda: '"starting"' in agent.log)
    time.sleep(delay)
    assert agent.terminate() == 0
    assert [what for name, what in stops(agent) if name in ("watcher", "netctl")] == [CLEAN, CLEAN]


@pytest.mark.parametrize("name", ["watcher", "netctl"])
def test_one_that_is_dead_is_started_for_its_clean_up_alone(start: Start, name: str) -> None:
    agent = start()
    pids = agent.all_ready()
    agent.order(name, "crash")
    os.kill(pids[name], signal.SIGKILL)
    wait(lambda: len(agent.noted(name)) >= 5)  # it waits for longer and longer
    wait(lambda: next(w for w in agent.ask("status").workers if w.worker == name).state == "down")
    starts = agent.noted(name).count("started")
    assert agent.terminate() == 0
    assert agent.noted(name)[-1] == CLEAN
    assert agent.noted(name).count("started") == starts, "it is not started as for its work"
    assert [line["worker"] for line in agent.logged("for that alone")] == [name]


def test_one_that_dies_of_its_clean_up_is_given_one_more_chance(start: Start) -> None:
    agent = start()
    agent.all_ready()
    agent.order("netctl", "crash-at-end")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(60) == 1
    assert agent.noted("netctl") == ["started", "crashed", "crashed"]
    (line,) = agent.logged("not cleaned up")
    assert line["worker"] == "netctl" and "routes" in line["may_be_left"]
    assert ("mesh", CLEAN) in stops(agent), "the others have ended as they should"


def test_one_that_was_told_to_restart_when_the_end_came_cleans_up(start: Start) -> None:
    agent = start()
    pids = agent.all_ready()
    os.kill(pids["netctl"], signal.SIGSTOP)

    def ask() -> None:
        with contextlib.suppress(TemporaryError):
            agent.ask("restart", "netctl")

    asked = threading.Thread(target=ask)
    asked.start()
    wait(lambda: agent.logged("restart asked for"))
    agent.process.send_signal(signal.SIGTERM)
    wait(lambda: agent.logged("ending"))
    os.kill(pids["netctl"], signal.SIGCONT)
    assert agent.process.wait(60) == 0
    asked.join()
    assert agent.noted("netctl")[-1] == CLEAN


def test_nothing_is_restarted_while_it_ends(start: Start) -> None:
    agent = start(watcher="slow-at-end")
    agent.all_ready()
    agent.process.send_signal(signal.SIGTERM)
    wait(lambda: "stopping" in agent.noted("watcher"))
    assert "is ending" in agent.ask("restart", "mesh").error
    assert "is ending" in agent.ask("restart", "cni").error


def test_a_worker_that_does_not_end_is_killed_and_the_rest_still_cleans_up(start: Start) -> None:
    agent = start(hurry=True, watcher="stuck-at-end")
    agent.all_ready()
    assert agent.terminate() == 1
    assert ("netctl", CLEAN) in stops(agent)
    assert [line["worker"] for line in agent.logged("did not end in time")] == ["watcher"]
    assert [line["may_be_left"] for line in agent.logged("not cleaned up")] == ["the node's annotations"]


@pytest.mark.timing
def test_the_end_comes_in_time_whatever_hangs(start: Start) -> None:
    assert sum(ending.LIMITS) + len(ending.LIMITS) * ending.DEATH < 19.9
    agent = start(hurry=True)
    pids = agent.all_ready()
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    with Given() as clock:
        assert agent.terminate() == 1
    assert clock.seconds < bound(sum(hurried(ending.LIMITS)) + 1)
    wait(lambda: not any(alive(pid) for pid in pids.values()))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """One toy without a parent, that does what it is told."""
    with contextlib.ExitStack() as stack:

        def start_alone(order: str) -> subprocess.Popen[bytes]:
            (tmp_path / "netctl").write_text(order)
            command = [*TOYS, str(tmp_path / "run"), str(tmp_path), "netctl"]
            process = stack.enter_context(subprocess.Popen(command, start_new_session=True))
            stack.callback(process.kill)
            return process

        yield start_alone


def test_a_worker_alone_ends_at_the_second_interrupt_and_not_at_an_echo(
    alone: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """An echo that is handled later than within a moment is no echo: then it is tried again."""
    notes = tmp_path / "notes"
    for _ in range(5):
        notes.unlink(missing_ok=True)
        process = alone("slow-at-end")
        wait(lambda: notes.exists() and "started" in notes.read_text())
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
        wait(lambda: "stopping" in notes.read_text() or process.poll() is not None)  # noqa: B023
        time.sleep(0.5)
        if process.poll() is None:
            break
    assert process.poll() is None, "it is cleaning up"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 1


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2])
def test_a_worker_alone_that_is_told_to_end_early_cleans_up(
    alone: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path, delay: float
) -> None:
    process = alone("")
    wait(lambda: held(process.pid))
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert CLEAN in (tmp_path / "notes").read_text()


def held(pid: int) -> bool:
    """Whether the signals that end it are no longer ended by the kernel: blocked, or caught."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in status if line.startswith(("SigBlk:", "SigCgt:"))]
    return any(mask & 1 << signal.SIGTERM - 1 for mask in masks)
