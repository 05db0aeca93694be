"""What the control socket answers beside status and restart, and whom."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from kilo.bus import Loop
from kilo.errors import PermanentError
from kilo.log import Logger
from kilo.model.host import Failure, WorkerState
from kilo.supervisor.control import MOST_TOLD, ControlServer, states_of
from kilo.supervisor.parent import group_of
from tests.integration.supervisor.agents import Agent, wait

ASK = """
import os, sys
from kilo.supervisor.control import Request, ask
os.setgroups([int(sys.argv[2])]), os.setgid(65534), os.setuid(65534)
print(ask(sys.argv[1], Request("status")))
"""
GROUP = 54321


def details(agent: Agent, name: str) -> int:
    return len([line for line in agent.logged("a detail") if line["component"] == name])


def test_how_much_is_logged_can_be_changed_and_a_new_process_keeps_it(start: Callable[..., Agent]) -> None:
    agent = start(mesh="debug", cni="debug")
    before = agent.all_ready()
    time.sleep(0.3)
    assert not agent.logged("a detail")
    assert agent.ask("loglevel", "mesh", "debug").error == ""
    wait(lambda: details(agent, "mesh") > 2)
    os.kill(before["mesh"], signal.SIGKILL)
    agent.all_ready()
    seen = details(agent, "mesh")
    wait(lambda: details(agent, "mesh") > seen + 2)
    assert details(agent, "cni") == 0
    assert agent.ask("loglevel", "all", "none").error == ""
    size = -1

    def silent() -> bool:
        nonlocal size
        before, size = size, len(agent.log)
        time.sleep(0.5)
        return size == before

    wait(silent)
    assert agent.terminate() == 0
    assert len(agent.log) == size, "the parent is silent too"


def test_a_level_or_worker_that_there_is_not_is_refused(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.all_ready()
    assert "'loud' is no level" in agent.ask("loglevel", "all", "loud").error
    assert "there is no worker 'cook'" in agent.ask("loglevel", "cook", "info").error


def test_nobody_can_send_the_parent_a_descriptor(start: Callable[..., Agent], refusable: bool) -> None:
    """It would have to close it, and stand still for as long as that takes."""
    agent = start(mesh="give")
    agent.all_ready()
    assert agent.noted("mesh")[1] == ("refused" if refusable else "taken")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(agent.run_dir / "control.sock"))
        with pytest.raises(PermissionError) if refusable else nullcontext():
            socket.send_fds(caller, [b"?"], [caller.fileno()])


def test_the_flags_that_are_not_the_defaults_are_told(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.all_ready()
    found = agent.ask("flags").flags
    assert found["run_dir"] == str(agent.run_dir)
    assert "encapsulate" not in found


@pytest.mark.parametrize("given", [(), ("--state-dir=/elsewhere",)])
def test_kg_doctor_has_the_flags_of_the_agent(start: Callable[..., Agent], given: tuple[str, ...]) -> None:
    """Who runs it on a host has none of them at hand; those that are given count all the same."""
    agent = start()
    agent.all_ready()
    command = [sys.executable, "-m", "kilo", "doctor", f"--run-dir={agent.run_dir}", "-o", "json", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    found = {finding["check"]: finding["found"] for finding in json.loads(done.stdout)}
    told = "none that is not the default" if given else "state-dir"
    assert found["flags"] == f"those of the agent that runs here: {told}"


class Told(NamedTuple):
    """As much of a worker as is asked for its state."""

    name: str
    state: WorkerState
    heard: float = 0.0


@pytest.mark.parametrize(("number", "key"), [(2, "route 1"), (2000, "more")])
def test_who_fails_is_never_told_to_be_well(number: int, key: str) -> None:
    failing = {f"route {n}": Failure("no space left on device", 1000 + n) for n in range(number)}
    state = WorkerState("netctl", 1, 0.0, "ready", 1, failing=failing)
    reply = states_of([Told("netctl", state)])  # type: ignore[list-item]
    found = reply.states["netctl"].failing
    assert key in found
    assert min(failure.since for failure in found.values()) == 1000
    assert str(number) in found["more"].message if key == "more" else len(found) == number
    assert len(msgspec.json.encode(reply)) < 2 * MOST_TOLD


def test_a_worker_that_says_far_too_much_is_left_out() -> None:
    state = WorkerState("netctl", 1, 0.0, "ready", 1, info={"x": "y" * MOST_TOLD})
    assert states_of([Told("netctl", state)]).states == {}  # type: ignore[list-item]


@pytest.fixture
def server() -> Iterator[Path]:
    """A control socket for GROUP, in a directory that everybody may enter."""
    directory = Path(f"/tmp/kgt-{os.getpid()}-{time.monotonic_ns()}")
    directory.mkdir(mode=0o755)
    loop = Loop()
    server = ControlServer(loop, str(directory), Logger("parent", "none"), GROUP)
    server.serve({}, {})
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield directory
    loop.stop()
    thread.join()
    server.close()
    loop.close()
    directory.rmdir()


@pytest.mark.parametrize(("group", "may"), [(GROUP, True), (GROUP + 1, False)])
def test_only_root_and_the_group_may_connect(server: Path, group: int, may: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(server), str(group)], capture_output=True, text=True, timeout=90
    )
    assert ("Reply(" in done.stdout, "no right to ask the parent" in done.stderr) == (may, not may)


def test_a_group_is_a_name_or_a_number() -> None:
    assert group_of("") is None
    assert group_of("54321") == 54321
    assert group_of("root") == 0
    with pytest.raises(PermanentError, match="--control-group: there is no group 'nobody-has-this'"):
        group_of("nobody-has-this")
