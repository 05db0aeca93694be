"""There is one netctl for an interface in a network namespace: two would undo each other's work.

The mark is an abstract Unix socket, of which the kernel keeps one a name and network namespace, and
which is gone the moment its holder is, however that ended. Called by kilo.netctl's worker, ports, earlier.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path

from kilo.errors import TakenError, TemporaryError
from kilo.holders import Listener, command, listener
from kilo.log import Logger

PATIENCE = 3.0
"""Seconds for a predecessor to end: it may be busy with its clean-up."""
_LOOK, _ASK_AGAIN = 0.02, 1.0
_CALLERS = 16


class Claim:
    """The claim to ``interface``, held until ``close``.

    Raises TakenError, naming the process, if another netctl holds it. Anybody on the host can
    make a socket of that name; one of a user who cannot be netctl keeps nobody from working.
    """

    def __init__(self, interface: str, log: Logger, patience: float = PATIENCE) -> None:
        self._name = _mark(interface)
        self._socket: socket.socket | None = None
        end = time.monotonic() + patience
        holder, asked = None, float("-inf")
        while not self._take():
            if time.monotonic() - asked >= _ASK_AGAIN:  # it lets few ask at once, and seldom looks who did
                holder, asked = listener(self._name) or holder, time.monotonic()
            if holder is not None and holder.uid not in (0, os.geteuid()):
                log.warn("a process that is no netctl pretends to be one; going on", **holder._asdict())
                return
            if time.monotonic() >= end:
                raise TakenError(_refusal(interface, holder.pid if holder else 0))
            time.sleep(_LOOK)

    def _take(self) -> bool:
        """Try to have the name. Its holder says who it is to whoever connects, and never answers."""
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            mark.bind(self._name)
            mark.listen(_CALLERS)
        except OSError as e:
            mark.close()
            if e.errno != errno.EADDRINUSE:
                raise TemporaryError(f"the mark of netctl cannot be set: {e.strerror}") from e
            return False
        self._socket = mark
        return True

    def forget_callers(self) -> None:
        """Let go of those who have asked who this is: call it now and then."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            for _ in range(_CALLERS):
                self._socket.accept()[0].close()

    def close(self) -> None:
        """Give the claim up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def claimant(interface: str) -> Listener | None:
    """The netctl that has ``interface`` in this network namespace, if one runs."""
    found = listener(_mark(interface))
    return found if found is not None and found.uid in (0, os.geteuid()) else None


def is_claimed(interface: str) -> bool:
    """Whether a netctl, or anything with its mark, has ``interface`` in this network namespace. Unlike with
    ``claimant`` it counts, too, if it cannot be asked. Raises TemporaryError."""
    try:
        table = Path("/proc/thread-self/net/unix").read_text(errors="replace")
    except OSError as e:
        raise TemporaryError(f"/proc/net/unix: {e.strerror}") from e
    return any(line.endswith(f" @kilo/netctl/{interface}") for line in table.splitlines())


def _mark(interface: str) -> str:
    return f"\0kilo/netctl/{interface}"


def _refusal(interface: str, pid: int) -> str:
    """``pid``: of who has the interface, 0 if it cannot be seen."""
    who = f"pid {pid}" if pid else "a process that cannot be seen from here"
    started = f", started as {command(str(pid))!r}" if pid else ""
    return (
        f"another netctl ({who}) has the interface {interface} in this network namespace{started}; "
        "an interface has one agent, whatever the --run-dir: end one of the two, or give one of them "
        "another --interface"
    )
