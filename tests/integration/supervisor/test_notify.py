"""What the service manager that started the agent is told."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.supervisor.agents import Agent, children, wait
from tests.integration.supervisor.test_starting import hold, standing

Start = Callable[..., Agent]


class Manager:
    """Listens as systemd does."""

    def __init__(self, path: str) -> None:
        self.lines: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind("\0" + path[1:] if path.startswith("@") else path)

    def told(self, line: str) -> int:
        """How often a line that begins like this has come."""
        while True:
            try:
                self.lines += self.socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return len([each for each in self.lines if each.startswith(line)])


@pytest.fixture(params=["file", "abstract"])
def address(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    path = str(tmp_path / "notify")
    return path if request.param == "file" else "@" + path


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    yield manager
    manager.socket.close()


def test_it_is_ready_when_all_configuration_is_good_and_says_what_is_wrong(
    start: Start, manager: Manager, address: str, tmp_path: Path
) -> None:
    hold(tmp_path, "watcher")
    agent = start(environment={"NOTIFY_SOCKET": address}, mesh="never-ready")
    with standing(tmp_path, "watcher"):
        wait(lambda: "started" in agent.noted("health"))
        wait(lambda: manager.told("STATUS="))
        assert not manager.told("READY=1"), "the watcher has not started yet"
        agent.order("watcher", "")
    wait(lambda: manager.told("READY=1"))
    wait(lambda: manager.told("STATUS=mesh: starting"))
    agent.order("mesh", "")
    agent.ask("restart", "mesh")
    wait(lambda: manager.told("STATUS=healthy"))
    assert manager.told("READY=1") == 1
    assert not manager.told("WATCHDOG=1"), "nobody asked for it"
    assert agent.terminate() == 0
    assert manager.told("STOPPING=1") == 1


@pytest.mark.parametrize("address", ["file"], indirect=True)
def test_the_watchdog_is_fed_by_the_loop_alone(start: Start, manager: Manager, address: str) -> None:
    agent = start(environment={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"})
    wait(lambda: manager.told("WATCHDOG=1") >= 2, 5)
    agent.process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    fed = manager.told("WATCHDOG=1")
    time.sleep(2.5)
    assert manager.told("WATCHDOG=1") == fed
    agent.process.send_signal(signal.SIGCONT)
    wait(lambda: manager.told("WATCHDOG=1") > fed, 3)


@pytest.mark.parametrize("address", ["file"], indirect=True)
def test_nobody_else_is_given_the_socket(start: Start, manager: Manager, address: str) -> None:
    agent = start(environment={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"})
    agent.all_ready()
    for pid in children(agent.process.pid):
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert "TOYS_HURRY" in environment
        assert "NOTIFY_SOCKET" not in environment and "WATCHDOG" not in environment


def test_a_manager_that_is_gone_costs_nothing(start: Start, tmp_path: Path) -> None:
    agent = start(environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    agent.all_ready()
    assert agent.terminate() == 0
