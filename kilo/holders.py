"""Who has a socket of this host, by the kernel's word: a UDP port, or the name of a Unix socket.

Reads /proc and asks the kernel; changes nothing. May be used by every package.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_TABLES = ("udp", "udp6")
_TCP_TABLES, _LISTENING = ("tcp", "tcp6"), "0A"
_NET = Path("/proc/thread-self/net")
_PROC = Path("/proc")
_COMMAND = 100
_CREDENTIALS = struct.Struct("=3i")


class UdpSocket(NamedTuple):
    """A line of /proc/net/udp: the user and the inode, which is 0 for some of the kernel's own."""

    uid: int
    inode: int


def udp_sockets(port: int) -> Iterator[UdpSocket]:
    """Those of this network namespace that are bound to ``port``, of IPv4 and of IPv6."""
    for fields in _lines(_TABLES, port):
        yield UdpSocket(int(fields[7]), int(fields[9]))


def tcp_listeners(port: int) -> set[int]:
    """The inodes of the sockets of this network namespace that listen at TCP ``port``."""
    return {int(fields[9]) for fields in _lines(_TCP_TABLES, port) if fields[3] == _LISTENING}


def _lines(tables: Iterable[str], port: int) -> Iterator[list[str]]:
    for table in tables:
        with contextlib.suppress(OSError), (_NET / table).open() as lines:
            next(lines)
            for line in lines:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields


def processes(
    inodes: Container[int], work: float = float("inf"), patience: float = float("inf")
) -> Iterator[str]:
    """Ids of the processes that have one of these sockets, of those that this one may look at.

    It ends after so many seconds of ``work``, or so many in all: a host may have thousands of processes.
    """
    worked, end = time.thread_time() + work, time.monotonic() + patience
    for entry in os.listdir(_PROC):
        if time.thread_time() > worked or time.monotonic() > end:
            return
        if entry.isdigit() and any(inode in inodes for inode in _sockets_of(entry)):
            yield entry


def _sockets_of(pid: str) -> Iterator[int]:
    folder = f"{_PROC}/{pid}/fd"
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(folder):
            with contextlib.suppress(OSError):
                target = os.readlink(f"{folder}/{descriptor}")
                if target.startswith("socket:["):
                    yield int(target[8:-1])


def name(pid: str) -> str:
    """What a process is called. Raises OSError if there is none."""
    return (_PROC / pid / "comm").read_text().strip()


def command(pid: str) -> str:
    """The beginning of the command line of a process, "gone" if there is none."""
    try:
        called = name(pid)
        if called.startswith("kg-"):
            return called  # its command line is that of what all workers are forked from
        text = (_PROC / pid / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        text = text or called
    except OSError:
        return "gone"
    return "".join(c if c.isprintable() else "?" for c in text[:_COMMAND])


class Listener(NamedTuple):
    """Process id, as this process knows it, 0 if it is in a namespace that cannot be seen from here; user."""

    pid: int
    uid: int


def listener(path: str | Path) -> Listener | None:
    """Who listens on a Unix socket, of the file system or abstract (with a leading NUL). None if nobody
    does, this user may not connect, or too many wait to be let in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
        try:
            caller.connect(str(path))
            found = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return Listener(pid, uid)
