"""A host: network, mount, PID and UTS namespaces of its own, with private state directories.

Whatever the agent writes to goes to a tmpfs that only this host sees: /run, /etc, /var/lib. The rest
of the file system is the machine's. The namespaces live as long as the holder, their PID 1, and that
lives as long as the process that made the host: it reads a pipe from it. When it ends, the kernel
kills what runs inside.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from kilo.sandbox.profiles import code
from tests.lab.namespaces import ALL, NET, call_inside, call_unshared
from tests.lab.opened import hidden

T = TypeVar("T")
LEAST_PATIENCE = 60.0
"""Seconds for what must happen, on a machine that does much else: only a fault needs more."""
HOLDER = "kilo-lab-holder"
"""Marks a holder's command line; the word after it is the process that made it."""

_SET_UP = r"""
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/machine/etc /run/machine/lib /run/lock /run/netns
mount --bind /etc /run/machine/etc
mount --bind /var/lib /run/machine/lib
mount -t tmpfs -o mode=755 tmpfs /etc
mount -t tmpfs -o mode=755 tmpfs /var/lib
ln -s /run/machine/etc/* /etc/
ln -s /run/machine/lib/* /var/lib/
rm -rf /etc/hosts /etc/hostname /etc/resolv.conf /etc/cni /var/lib/kilo /var/lib/cni
mkdir -p /etc/cni/net.d /var/lib/kilo
hostname "$1"
number=0
for path in $4; do  # what everybody may read, of directories that only root may go through
  number=$((number + 1))
  mkdir -p "/run/machine/code/$number"
  mount --bind "$path" "/run/machine/code/$number"
done
for folder in $5; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
number=0
for path in $4; do
  number=$((number + 1))
  mkdir -p "$path"
  mount --bind "/run/machine/code/$number" "$path"
done
printf '127.0.0.1 localhost\n::1 localhost\n' > /etc/hosts
: > /etc/resolv.conf
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter
echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
echo ready
exec "$2" -I -S -c "$3" "$0" >/dev/null
"""
_HOLD = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then buries the orphans that PID 1 is given
os.execvp("cat", [sys.argv[1]])
"""


class CommandFailed(Exception):
    """A command inside a host ended with another status than 0."""


class Host:
    """A host of the lab. ``logs``: directory for what its processes print."""

    def __init__(self, name: str, logs: Path) -> None:
        self.name = name
        self.logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []
        closed = hidden(code())
        opened = (" ".join(closed), " ".join(sorted(set(closed.values()))))
        holder = call_unshared(
            lambda: subprocess.Popen(
                ["sh", "-c", _SET_UP, f"{HOLDER}:{os.getpid()}:{name}", name, sys.executable, _HOLD, *opened],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                start_new_session=True,
            )
        )
        self._holder = holder
        assert holder.stdout
        assert holder.stderr
        if holder.stdout.readline() != b"ready\n":
            message = holder.stderr.read().decode().strip()
            self.close()
            raise CommandFailed(f"host {name}: {message}")
        self.write("/etc/hostname", name + "\n")

    @property
    def pid(self) -> int:
        """The holder, seen from outside: ``nsenter -a -t PID`` enters the host."""
        return self._holder.pid

    def path(self, path: str) -> Path:
        """Where a file of this host is, seen from outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def write(self, path: str, text: str) -> None:
        """Write a file of this host, with its directories."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def read(self, path: str) -> str:
        return self.path(path).read_text()

    def call(self, function: Callable[[], T], kinds: Sequence[str] = NET) -> T:
        """Run ``function`` in a thread of this process inside the host, by default its network alone."""
        return call_inside(self.pid, function, kinds)

    def ip(self, *lines: str) -> None:
        """Run lines of ip(8) inside the host's network. They may name any process of the machine."""
        text = "\n".join(lines) + "\n"
        done = self.call(
            lambda: subprocess.run(
                ["ip", "-batch", "-"], input=text, capture_output=True, text=True, check=False
            )
        )
        if done.returncode:
            raise CommandFailed(f"host {self.name}: ip -batch: {done.stderr.strip()}\n{text}")

    def run(self, *command: str, check: bool = True, timeout: float = 30, stdin: str = "") -> str:
        """Standard output of a command inside the host. Raises CommandFailed unless ``check`` is off."""
        done = self.call(
            lambda: subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout,
                input=stdin,
                cwd="/",
            ),
            ALL,
        )
        if check and done.returncode:
            raise CommandFailed(f"host {self.name}: {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def start(
        self, command: Sequence[str], log: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process inside the host; what it prints is appended to ``logs``/``log``."""
        with open(self.logs / log, "ab") as output:
            process = self.call(
                lambda: subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                ),
                ALL,
            )
        self._processes.append(process)
        return process

    def started(self) -> list[int]:
        """The processes that were started here and have not ended."""
        return [process.pid for process in self._processes if process.poll() is None]

    def start_wireguard_go(self, interface: str) -> subprocess.Popen[bytes]:
        """Run wireguard-go for ``interface``, and wait for its control socket."""
        process = self.start(
            ["wireguard-go", "-f", interface],
            f"{self.name}.wireguard-go.log",
            {"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"},
        )
        socket = self.path(f"/run/wireguard/{interface}.sock")
        wait_until(socket.exists, 10, f"wireguard-go of {self.name} has its socket")
        return process

    def close(self) -> None:
        """End the host and all that runs in it."""
        assert self._holder.stdin
        self._holder.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self._holder.send_signal(signal.SIGKILL)
        # PID 1 is gone only when its namespace is empty, and these are ours to reap.
        for process in [*self._processes, self._holder]:
            process.wait(10)
        for stream in (self._holder.stdout, self._holder.stderr):
            assert stream
            stream.close()


def wait_until(condition: Callable[[], object], seconds: float, what: str, pause: float = 0.02) -> float:
    """Wait for ``condition``; the seconds it took. Raises TimeoutError that says ``what``.

    ``seconds``: at most, or ``LEAST_PATIENCE`` if that is more.
    """
    seconds = max(seconds, LEAST_PATIENCE)
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return time.monotonic() - start
