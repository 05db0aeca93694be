"""Tells the service manager that started the agent how it is doing (sd_notify), if there is one.

It is ready once every worker's configuration is good; what works and what does not comes and goes after
that, and is its status line. Called by kilo.supervisor.parent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

SOCKET, WATCHDOG, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
EARLY = 0.5
"""Seconds by which it may be told too early that the parent is alive; calls come once a second, or a little
later: one that comes a moment before the time may be the last one before it is too late."""


class Notifier:
    """Takes the variables out of ``environment``: they are for this process, not for what it starts."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop(SOCKET, "")
        usec = environment.pop(WATCHDOG, "")
        pid = environment.pop(WATCHDOG_PID, "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        mine = not pid or pid == str(os.getpid())
        self._every = int(usec) / 2e6 if usec.isdecimal() and mine else 0.0
        self._alive_at = 0.0
        self._ready = False
        self._status = ""

    def tell(self, ready: bool, status: str) -> None:
        """Call it once a second: what is new is told, and that the parent is alive, as often as is asked."""
        lines = []
        if ready and not self._ready:
            self._ready = True
            lines.append("READY=1")
        if status != self._status:
            self._status = status
            lines.append("STATUS=" + status.replace("\n", " "))
        now = time.monotonic()
        if self._every and now - self._alive_at >= self._every - EARLY:
            self._alive_at = now
            lines.append("WATCHDOG=1")
        self._send(lines)

    def stopping(self) -> None:
        """The agent is ending."""
        self._send(["STOPPING=1", "STATUS=ending"])

    def _send(self, lines: list[str]) -> None:
        if lines and self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)
                manager.sendto("\n".join(lines).encode(), self._address)
