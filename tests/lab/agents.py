"""An agent on a host: started, watched, asked and ended as a person or a kubelet would."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilo.errors import KiloError
from kilo.supervisor.control import Request, ask
from tests.lab.host import Host, wait_until
from tests.lab.processes import Process, tree

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE_PATH = {"PYTHONPATH": str(REPOSITORY)}
"""The environment in which ``python -m`` finds kilo and tests from any directory."""
WIREGUARD_GO = "wireguard-go"
STOP_SECONDS = 25.0


@dataclass(frozen=True)
class Program:
    """How an agent is started. ``needs_interface``: it must find a WireGuard interface that runs."""

    command: tuple[str, ...]
    needs_interface: bool = False


KG = Program((sys.executable, "-m", "kilo"))
PROGRAM_VARIABLE = "KILO_LAB_AGENT"
"""Names an environment variable with the command line of another agent, to try the lab with."""


def other_program(command: Sequence[str]) -> Program:
    """Another agent with the same flags, such as the Go one: wireguard-go is started for it."""
    return Program(tuple(command), needs_interface=True)


def default_program() -> Program:
    """kg, unless the environment names another."""
    words = shlex.split(os.environ.get(PROGRAM_VARIABLE, ""))
    return other_program(words) if words else KG


class Agent:
    """The agent of one host; ``flags`` are its whole command line."""

    def __init__(self, host: Host, program: Program, flags: Sequence[str]) -> None:
        self.host = host
        self.program = program
        self.flags = list(flags)
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = host.logs / f"{host.name}.kg.log"

    def start(self) -> None:
        """Start it; returns at once."""
        flags = list(self.flags)
        if self.program.needs_interface:
            if not self.host.path("/run/wireguard/kilo0.sock").exists():
                self.host.start_wireguard_go("kilo0")
            flags.append("--create-interface=false")
        self.process = self.host.start([*self.program.command, *flags], self.log_path.name, MODULE_PATH)

    @property
    def pid(self) -> int:
        """The process that was started."""
        assert self.process
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def processes(self) -> list[Process]:
        """All of the agent's own processes: neither those of pods nor wireguard-go, which outlives it."""
        return [p for p in self._all_processes() if p.name != WIREGUARD_GO]

    def wireguard_go(self) -> list[Process]:
        """The userspace WireGuard of the host, whoever started it."""
        return [p for p in self._all_processes() if p.name == WIREGUARD_GO]

    def _all_processes(self) -> list[Process]:
        """What the agent and the lab started here, and what was left to the holder as an orphan."""
        found: dict[int, Process] = {}
        for root in [*self.host.started(), self.host.pid]:
            found |= {p.pid: p for p in tree(root) if p.pid != self.host.pid}
        return list(found.values())

    def worker(self, name: str) -> int:
        """The process id of one worker of kg, or 0."""
        return next((p.pid for p in self.processes() if p.name == f"kg-{name}"), 0)

    def kill_worker(self, name: str) -> int:
        """SIGKILL one worker; the process id that it had."""
        return self.signal_worker(name, signal.SIGKILL)

    def signal_worker(self, name: str, number: int) -> int:
        """Send a signal to one worker; the process id that it had.

        One whose files were replaced (a file system was mounted there) ends by itself: then it is the next
        one that gets it. Raises TimeoutError if none comes.
        """

        def sent() -> bool:
            if pid := self.worker(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    pids.append(pid)
            return bool(pids)

        pids: list[int] = []
        wait_until(sent, 5, f"{self.host.name} has a worker {name}")
        return pids[0]

    def await_worker(self, name: str, other_than: int = 0, seconds: float = 20) -> float:
        """Wait until the worker is ready, in a process other than that; the seconds it took."""

        def ready() -> bool:
            return self.worker(name) not in (0, other_than) and self.phase(name) == "ready"

        return wait_until(ready, seconds, f"worker {name} of {self.host.name} is ready")

    def phases(self) -> dict[str, str]:
        """The state of each worker as the parent sees it: down, starting, ready or stopping."""
        try:
            reply = ask(str(self.host.path("/run/kilo")), Request("status"))
        except KiloError:
            return {}
        return {worker.worker: worker.state for worker in reply.workers}

    def phase(self, name: str) -> str:
        """The state of one worker."""
        return self.phases().get(name, "down")

    def status(self) -> str:
        """What ``kg status`` prints here."""
        return self.ask("status")

    def ask(self, *words: str) -> str:
        """Standard output of one of the operator's commands of kg on this host."""
        environment = f"PYTHONPATH={REPOSITORY}"
        return self.host.run("env", environment, *self.program.command, *words, check=False)

    def terminate(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, then wait; the exit status. Raises TimeoutError."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as e:
            raise TimeoutError(f"the agent of {self.host.name} did not end in {seconds:g} s") from e

    def kill_all(self) -> None:
        """SIGKILL every process of the agent at once, so that none can clean up or notice."""
        while pids := [p.pid for p in self.processes()]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process:
                self.process.wait(5)
            time.sleep(0.02)

    def log(self) -> list[dict[str, Any]]:
        """What it logged, decoded; a line that is no JSON as level ``text``."""
        lines: list[dict[str, Any]] = []
        if not self.log_path.exists():
            return lines
        for line in self.log_path.read_text(errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"level": "text", "msg": line})
        return lines
