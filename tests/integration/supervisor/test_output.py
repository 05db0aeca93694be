"""The agent's output goes to a pipe that nobody reads: it works, and ends, all the same."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable

import pytest

from kilo.bus import WORKERS
from kilo.cli.heard import look
from kilo.config import Config
from tests.clock import Given, bound
from tests.integration.supervisor.agents import CLEAN, Agent, wait

Start = Callable[..., Agent]
Pipe = tuple[int, int]


def works_and_ends(agent: Agent) -> None:
    """It restarts a worker that dies, answers, and cleans up when it is told to end."""
    before = agent.all_ready()
    os.kill(before["cni"], signal.SIGKILL)
    wait(lambda: agent.pids().get("cni", before["cni"]) != before["cni"], 5)
    assert agent.all_ready().keys() == before.keys()
    with Given() as clock:
        assert agent.terminate(seconds=10) == 0
    assert clock.seconds < bound(3)
    assert [agent.noted(name)[-1] for name in WORKERS] == [CLEAN] * len(WORKERS)


@pytest.mark.timing
def test_nobody_is_there_to_read(start: Start, pipe: Pipe) -> None:
    agent = start(output=pipe[1])
    agent.all_ready()
    os.close(pipe[0])
    works_and_ends(agent)


@pytest.mark.timing
def test_a_reader_does_not_read(start: Start, pipe: Pipe) -> None:
    agent = start(output=pipe[1], **dict.fromkeys(WORKERS, "chatter"))
    agent.all_ready()
    wait(lambda: not select.select([], [pipe[1]], [], 0)[1])
    works_and_ends(agent)


def test_one_that_cannot_run_ends_with_its_status_all_the_same(start: Start, pipe: Pipe) -> None:
    os.close(pipe[0])
    assert start(output=pipe[1], mesh="permanent").process.wait(60) == 2


def test_what_was_dropped_is_told_when_the_reader_reads_again(start: Start, pipe: Pipe) -> None:
    agent = start(output=pipe[1], mesh="talk")
    agent.all_ready()
    wait(lambda: counted(agent, "mesh") > 0)
    lines: list[bytes] = []

    def read() -> None:
        with open(pipe[0], "rb", closefd=False) as reader:
            lines.extend(reader)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.5)
    assert agent.terminate() == 0
    os.close(pipe[1])
    reader.join(10)
    records = [json.loads(line) for line in lines]
    told = sum(record.get("dropped", 0) for record in records if record["component"] == "mesh")
    talked = sum(record["msg"].startswith("talking") for record in records)
    assert told > 0
    assert talked + told == 3000 or talked + told == 3001
    assert records[-1]["msg"] == "ended" and records[-1]["component"] == "parent"


def counted(agent: Agent, name: str) -> int:
    """What a worker has in kilo_errors_total for lines of its log."""
    found = look(Config(run_dir=str(agent.run_dir)))
    return next(w.errors.get("log", 0) for w in found.workers if w.worker == name)


def test_the_pipe_of_others_is_left_as_it_is(start: Start, pipe: Pipe) -> None:
    agent = start(output=pipe[1])
    agent.all_ready()
    assert not fcntl.fcntl(pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK
    assert agent.terminate() == 0
    assert not fcntl.fcntl(pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK


def test_outputs_that_are_closed_become_nobody_elses(start: Start) -> None:
    agent = start(output=-1)
    for pid in agent.all_ready().values():
        assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (1, 2)] == ["/dev/null"] * 2
    assert agent.terminate() == 0
