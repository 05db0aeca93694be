"""Who has the UDP port that WireGuard is to have.

Reads /proc, and only when a port could not be had. Called by kilo.netctl.interface, and by
kilo.netctl.sole for what a process is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TABLES = ("udp", "udp6")
_NET = Path("/proc/thread-self/net")
_PROC = Path("/proc")
_SEARCH, _PATIENCE = 0.2, 0.8
"""Seconds of work for looking through processes (some thousands of them), and seconds in all."""
_COMMAND = 100


class _Socket(NamedTuple):
    """A line of /proc/net/udp: the user and the inode."""

    uid: int
    inode: int


def is_free(port: int) -> bool:
    """Whether a device could have the UDP port, of IPv4 and of IPv6, on all addresses."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                return False  # other errors: no IPv6 here, say, which keeps no device from the port
    return True


class Holder:
    """Finds out who has a port, and looks for the process again only when the socket is another."""

    def __init__(self) -> None:
        self._known: tuple[_Socket, str] | None = None

    def of(self, port: int) -> str:
        """Who it is, for a person; "" if nobody has it any more."""
        found = next(_sockets(port), None)
        if found is None:
            return ""
        if self._known is None or self._known[0] != found:
            self._known = found, _who(found)
        return self._known[1]


def _sockets(port: int) -> Iterator[_Socket]:
    for table in _TABLES:
        with contextlib.suppress(OSError), (_NET / table).open() as lines:
            next(lines)
            for line in lines:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port:
                    yield _Socket(int(fields[7]), int(fields[9]))


def _who(found: _Socket) -> str:
    process = _process(found.inode)
    if process is not None:
        return process
    try:
        name = pwd.getpwuid(found.uid).pw_name
    except KeyError:
        name = str(found.uid)
    hidden = "a process that netctl may not look at (kg doctor does), or the kernel, as for another device"
    return f"the user {name}: {hidden}"


def _process(inode: int) -> str | None:
    """Process id and command line of who has the socket; None if no such process can be seen."""
    target = f"socket:[{inode}]"
    worked, end = time.thread_time() + _SEARCH, time.monotonic() + _PATIENCE
    for entry in os.listdir(_PROC):
        if time.thread_time() > worked or time.monotonic() > end:
            return None
        if not entry.isdigit():
            continue
        folder = f"{_PROC}/{entry}/fd"
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(folder):
                with contextlib.suppress(OSError):
                    if os.readlink(f"{folder}/{descriptor}") == target:
                        return f"pid {entry} ({command(entry)})"
    return None


def command(pid: str) -> str:
    """The beginning of the command line of a process, "gone" if there is none."""
    try:
        name = (_PROC / pid / "comm").read_text().strip()
        if name.startswith("kg-"):
            return name  # its command line is that of what all workers are forked from
        text = (_PROC / pid / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        text = text or name
    except OSError:
        return "gone"
    return "".join(c if c.isprintable() else "?" for c in text[:_COMMAND])
