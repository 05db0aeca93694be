"""Starts wireguard-go on hosts whose kernel has no WireGuard.

The program must outlive us, since it carries the traffic: it puts itself into the background, in a
session of its own and with nothing of ours open, and the next run finds it by its UAPI socket.
That it is gone is known from its interface, which goes with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable

from kilo.bus import Loop
from kilo.errors import TemporaryError
from kilo.netctl.wireguard.uapi import answers, socket_path

PROGRAM = "wireguard-go"
_TUN = "/dev/net/tun"
_MESSAGE = 8000


class Launcher:
    """Starts the program for ``interface``, one at a time.

    ``on_end`` is called when the interface is there ("") or with what the program said instead.
    """

    def __init__(self, loop: Loop, interface: str, on_end: Callable[[str], None]) -> None:
        self._loop = loop
        self._interface = interface
        self._on_end = on_end
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def starting(self) -> bool:
        """The program was started, and has not yet said that it serves the interface."""
        return self._process is not None

    def start(self) -> None:
        """Start it; returns at once. Raises TemporaryError, saying what is missing, if it cannot be."""
        if self._process is not None:
            return
        program = shutil.which(PROGRAM)
        if program is None:
            raise TemporaryError(
                f"the kernel has no WireGuard (module wireguard) and {PROGRAM} is not on PATH: "
                "one of them is needed"
            )
        if not os.path.exists(_TUN):
            raise TemporaryError(f"the kernel has no WireGuard, and {PROGRAM} needs {_TUN}, which is missing")
        self._remove_stale_socket()
        try:
            self._process = subprocess.Popen(
                [program, self._interface],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath)},
            )
        except OSError as e:
            raise TemporaryError(f"cannot start {program}: {e.strerror}") from e
        watch = os.pidfd_open(self._process.pid)
        self._loop.add_reader(watch, lambda: self._ended(watch))

    def _remove_stale_socket(self) -> None:
        path = socket_path(self._interface)
        if os.path.exists(path) and not answers(self._interface):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _ended(self, watch: int) -> None:
        """The part in the foreground ends once the interface is there, or when it cannot be."""
        self._loop.remove_reader(watch)
        os.close(watch)
        process, self._process = self._process, None
        if process is None or process.stdout is None:
            return
        status = process.wait()
        os.set_blocking(process.stdout.fileno(), False)
        said = (process.stdout.read(_MESSAGE) or b"").decode(errors="replace")
        process.stdout.close()
        if status == 0:
            self._on_end("")
        else:
            plain = [line for line in said.splitlines() if line.isascii() and line.strip()]
            self._on_end(f"{PROGRAM} ended with status {status}: {plain[-1] if plain else 'no message'}")


def end(interface: str) -> None:
    """End the program that serves ``interface``: it does when its socket's file is gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket_path(interface))
