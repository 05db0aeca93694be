"""What netctl's worker tells the kernel, as strace sees it."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple


class Messages(NamedTuple):
    """What went to the kernel in one system call: the type of the first message, its bytes, and all."""

    kind: str
    first: int
    all: int


SENT = re.compile(r"nlmsg_len=(\d+), nlmsg_type=([^,]+), nlmsg_flags=([^,]+),.*, (\d+), 0, NULL, 0")
QUESTIONS = ("NLM_F_DUMP", "|0x300")
GENERATION = "NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_GETGEN"
STARTS_OR_REPLACES = re.compile(r"\b(clone3?|v?fork|execve)\(|\bIP6?T_SO_SET")


class Trace:
    """By which messages a worker changes something.

    It is begun by a thread in the worker's network namespace: elsewhere strace finds nothing out
    about its sockets, and decodes no message.
    """

    def __init__(self, pid: int, path: Path) -> None:
        self._path = path
        calls = "sendto,sendmsg,setsockopt,clone,clone3,fork,vfork,execve"
        command = ["strace", "-f", "-s", "1", "-e", f"trace={calls}", "-o", str(path)]
        self._process = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        assert "attached" in self._process.stderr.readline()

    def stop(self) -> list[Messages]:
        """What was sent, without questions, sorted. Fails if anything was started, or a table of
        xtables replaced, or if WireGuard was not looked at."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        assert self._process.stderr
        self._process.stderr.close()
        said = self._path.read_text()
        assert not STARTS_OR_REPLACES.search(said), said
        assert "nlmsg_type=wireguard" in said, "it did look"
        sent = []
        for first, kind, flags, size in SENT.findall(said):
            if kind != GENERATION and not flags.endswith(QUESTIONS):
                sent.append(Messages(kind, int(first), int(size)))
        return sorted(sent)
