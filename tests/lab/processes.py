"""What a tree of processes costs: CPU, memory, and how many were started."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A process as /proc has it; CPU times in seconds, those of children that were waited for apart."""

    pid: int
    parent: int
    name: str
    command: str
    cpu: float
    children_cpu: float


def read(pid: int) -> Process | None:
    """Process ``pid``, or None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    utime, stime, cutime, cstime = (int(f) / _TICK for f in fields[11:15])
    return Process(pid, int(fields[1]), name, command.strip(), utime + stime, cutime + cstime)


def tree(root: int) -> list[Process]:
    """Process ``root`` and all below it, parents first."""
    found: list[Process] = []
    waiting = [root]
    while waiting:
        pid = waiting.pop(0)
        process = read(pid)
        if process is None:
            continue
        found.append(process)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in os.listdir(f"/proc/{pid}/task"):
                children = Path(f"/proc/{pid}/task/{task}/children").read_text()
                waiting += [int(child) for child in children.split()]
    return found


def cpu_seconds(processes: Iterable[Process]) -> float:
    """CPU that ``processes`` and their ended children have used in all."""
    return sum(p.cpu + p.children_cpu for p in processes)


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process: ``pss`` (shared pages divided), ``uss`` (its own pages), ``rss`` (all)."""
    fields: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value, *_ = line.split()
            fields[name] = int(value) * 1024
    return {
        "pss": fields.get("Pss:", 0),
        "uss": fields.get("Private_Clean:", 0) + fields.get("Private_Dirty:", 0),
        "rss": fields.get("Rss:", 0),
    }


NETLINK_CONNECTOR = 11
CN_IDX_PROC = 1
CN_VAL_PROC = 1
PROC_CN_MCAST_LISTEN = 1
PROC_EVENT_FORK = 0x00000001
PROC_EVENT_EXEC = 0x00000002
_NLMSG = struct.Struct("=IHHII")
_CN_MSG = struct.Struct("=IIIIHH")
_EVENT = struct.Struct("=IIQ")
_MOST_EVENTS_AT_ONCE = 1 << 16


class StartedProcesses:
    """Counts the processes that a tree starts and the programs it executes, as the kernel reports them.

    It listens to the process event connector, which only root in the first PID namespace may:
    ``unavailable`` says why it does not, where it does not.
    """

    def __init__(self, members: Iterable[int]) -> None:
        self.forks = 0
        self.threads = 0
        self.programs: Counter[str] = Counter()
        self.unavailable = ""
        self._members = set(members)
        self._stop = threading.Event()
        try:
            self._socket = self._listen()
        except OSError as e:
            self.unavailable = f"process events: {e.strerror}"
            return
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @staticmethod
    def _listen() -> socket.socket:
        listener = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_CONNECTOR)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        listener.bind((0, CN_IDX_PROC))
        body = _CN_MSG.pack(CN_IDX_PROC, CN_VAL_PROC, 0, 0, 4, 0) + struct.pack("=I", PROC_CN_MCAST_LISTEN)
        listener.send(_NLMSG.pack(_NLMSG.size + len(body), 3, 0, 0, os.getpid()) + body)
        listener.settimeout(0.2)
        return listener

    def stop(self) -> None:
        """Count no more."""
        self._stop.set()
        if not self.unavailable:
            self._thread.join()
            self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._take(self._socket.recv(_MOST_EVENTS_AT_ONCE)[_NLMSG.size + _CN_MSG.size :])
            except TimeoutError:
                continue
            except OSError as e:
                self.unavailable = f"process events: {e.strerror}"
                return

    def _take(self, event: bytes) -> None:
        if len(event) < _EVENT.size:
            return
        what, _, _ = _EVENT.unpack_from(event)
        data = event[_EVENT.size :]
        if what == PROC_EVENT_FORK:
            _, parent, child, group = struct.unpack_from("=4I", data)
            if parent in self._members:
                self.forks += child == group
                self.threads += child != group
                self._members.add(group)
        elif what == PROC_EVENT_EXEC:
            _, group = struct.unpack_from("=2I", data)
            if group in self._members:
                process = read(group)
                self.programs[process.command if process else "(already ended)"] += 1
