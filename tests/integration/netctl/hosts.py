"""A host for netctl made of a network namespace: the calling thread moves into it and back."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from kilo.netctl.netlink.socket import NETLINK_ROUTE, Events, Message

_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_count = itertools.count()
SOCKETS = Path("/run/wireguard")


class Host:
    """The namespace. ``interface`` is a name for WireGuard that no other test uses: the directory
    of the sockets is one for all namespaces."""

    def __init__(self) -> None:
        self.interface = f"kgt{os.getpid() % 1000000}x{next(_count)}"
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        assert _libc.unshare(_NEWNET) == 0, os.strerror(ctypes.get_errno())
        self._inode = os.stat("/proc/thread-self/ns/net").st_ino
        ip("link set lo up")
        for key in ("default/accept_dad", "all/accept_dad"):
            Path("/proc/sys/net/ipv6/conf", key).write_text("0")

    def wire(self, name: str = "eth0", address: str = "10.1.0.10/24") -> None:
        """An interface with an address, wired to one without."""
        ip(f"link add {name} type veth peer name {name}-far")
        for end in (name, f"{name}-far"):
            ip(f"link set {end} addrgenmode none")  # a link-local address comes when it likes
        ip(f"link set {name}-far up")
        ip(f"addr add {address} dev {name}")
        ip(f"link set {name} up")
        for end in (name, f"{name}-far"):  # the kernel takes a moment to find that they have a carrier
            while "state UP" not in ip(f"link show {end}"):
                time.sleep(0.002)

    def programs(self, name: str = "wireguard-go") -> list[int]:
        """The processes of that name inside."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                named = entry.name.isdigit() and (entry / "comm").read_text().strip() == name
                if named and (entry / "ns/net").stat().st_ino == self._inode:
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        for pid in self.programs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in SOCKETS.glob(f"{self.interface}*.sock"):
            path.unlink()
        with open(f"/proc/self/fd/{self._outside}", "rb") as namespace:
            assert _libc.setns(namespace.fileno(), _NEWNET) == 0
        os.close(self._outside)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still meanwhile, all of its threads, as one whose host swaps does."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while any(_state(task) not in "tTZX" for task in Path(f"/proc/{pid}/task").iterdir()):
            time.sleep(0.001)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _state(task: Path) -> str:
    """The letter for what a thread does; X if it is gone."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def ip(command: str) -> str:
    """What ``ip`` prints. Raises CalledProcessError."""
    done = subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
    return done.stdout


def lines(command: str) -> list[str]:
    """The lines that ``ip`` prints, without blanks at the ends."""
    return [" ".join(line.split()) for line in ip(command).splitlines()]


@contextlib.contextmanager
def kernel_events(*groups: int) -> Iterator[list[Message]]:
    """What the kernel says to these groups meanwhile; filled once the block has ended."""
    heard: list[Message] = []
    with contextlib.closing(Events(NETLINK_ROUTE, groups)) as events:
        yield heard
        heard += events.read(1 << 20)
