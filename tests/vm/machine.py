"""The virtual machine: booted for a list of tests, heard, and ended.

It runs in a PID namespace whose first process dies with the one that made it, so however that ends,
nothing of the machine stays. Emulated, since not every machine can lend its processor to another.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parents[2]
TAIL_LINES = 60
MEMORY = "2G"
PROCESSORS = min(4, os.cpu_count() or 1)

PARAMETERS = (
    "modprobe.blacklist=kvm,kvm_amd,kvm_intel",
    "mitigations=off",
    "init_on_alloc=0",
    "transparent_hugepage=never",
    "tsc=reliable",
    "clocksource=tsc",
    "panic=-1",
)
"""Of the kernel: no time is spent on what an emulated machine has no use for. Huge pages are slow there."""
CPU = "Nehalem"
"""Old enough that no program uses instructions that are slow to emulate."""
APART = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child=KILL")
"""Begins a command whose processes all die with the one that started it, or with the first of them."""
NICENESS = -10
"""The machine is the longest work of a test run, and has clocks of its own that go on while it waits for a
processor: it is served before the tests beside it."""
CACHED = "kilo-cached"
"""The tag under which guest.sh finds this machine's files, to mount them with a cache."""


@dataclass(frozen=True)
class Limits:
    """Seconds: to the first word of the pytest inside (some 20 on an idle machine), between two words
    (those inside have their own time limits, which strike before), and in all."""

    boot: float = 600
    silence: float = 900
    life: float = 3600


class MachineFailed(Exception):
    """The machine did not boot, hung, or ended early. The text ends with what it said last."""


def newest_kernel() -> Path:
    """The newest kernel of Debian's that is installed. Raises MachineFailed."""
    found = [path for path in Path("/boot").glob("vmlinuz-*-amd64") if "cloud" not in path.name]
    if not found:
        raise MachineFailed("no kernel to boot; run: apt-get install linux-image-amd64")
    return max(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])


def command(directory: Path) -> list[str]:
    """The command that boots the machine and runs guest.sh in it, which finds its work in ``directory``."""
    more = (
        f"-cpu {CPU} -fsdev local,id={CACHED},path=/,security_model=none,readonly=on,multidevs=remap "
        f"-device virtio-9p-pci,fsdev={CACHED},mount_tag={CACHED}"
    )
    return [
        *(str(Path(sys.executable).with_name("vng")), "--disable-kvm", "--force-9p", "--verbose"),
        *("--cpus", str(PROCESSORS), "--memory", MEMORY, "--append", " ".join(PARAMETERS)),
        *(f"--qemu-opts={more}", "--run", str(newest_kernel()), "--user", "root", "--"),
        *("sh", str(Path(__file__).with_name("guest.sh")), CACHED, str(directory), sys.executable),
    ]


def prefer(pid: int) -> None:
    """Serve the session of process ``pid`` before others, where the kernel schedules each session as a group.

    Niceness counts within a group alone there.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS))


class Machine:
    """A machine that runs ``tests``, node ids, in this order. ``directory`` is for files.

    ``start``: what to run in its place, for tests.
    """

    def __init__(
        self,
        tests: Sequence[str],
        directory: Path,
        start: Sequence[str] | None = None,
        limits: Limits = Limits(),
    ) -> None:
        self.failed = ""
        """What went wrong, once something did."""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._begun = time.monotonic()
        self._greeted = False
        self._limits = limits
        (directory / "tests").write_text("\n".join(tests) + "\n")
        self.log = directory / "machine.log"
        """All that the machine said."""
        self._process = subprocess.Popen(
            ["nice", "-n", str(NICENESS), *APART, *(start or command(directory))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": str(directory),
                "TMPDIR": str(directory),
            },
            start_new_session=True,
        )
        prefer(self._process.pid)
        self._threads = [
            threading.Thread(target=self._hear, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._note, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _hear(self, output: IO[bytes]) -> None:
        """Messages, one JSON line each."""
        for line in output:
            try:
                self._messages.put(json.loads(line))
            except ValueError:
                self._tail.append(line.decode(errors="replace").rstrip())
        self._messages.put(None)

    def _note(self, output: IO[bytes]) -> None:
        """What the kernel and the pytest inside print."""
        with open(self.log, "wb", buffering=0) as log:
            for line in output:
                log.write(line)
                self._tail.append(line.decode(errors="replace").rstrip())

    def reports(self, test: str) -> Iterator[dict[str, Any]]:
        """The reports of ``test``, as pytest serialises them, as they come. Raises MachineFailed."""
        if self.failed:
            raise MachineFailed(f"not run: {self.failed}")
        while True:
            message = self._next(test)
            if message.get("test") == test and "report" in message:
                yield message["report"]
            elif message.get("finished") == test:
                return

    def _next(self, test: str) -> dict[str, Any]:
        now = time.monotonic()
        limit = now + (self._limits.silence if self._greeted else self._limits.boot)
        try:
            message = self._messages.get(timeout=min(limit, self._begun + self._limits.life) - now)
        except (queue.Empty, ValueError):
            what = "the machine was silent for too long" if self._greeted else "the machine did not boot"
            raise self._failure(f"{what}, at second {time.monotonic() - self._begun:.0f}") from None
        if message is None:
            raise self._failure(f"the machine ended before {test} did")
        self._greeted = True
        return message

    def _failure(self, text: str) -> MachineFailed:
        self.failed = text
        self.close()
        return MachineFailed("\n".join([text, f"all that it said: {self.log}", *self._tail]))

    def close(self) -> None:
        """End the machine if it runs, and wait until nothing of it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()  # the pipes end with the last process of the machine
        for stream in (self._process.stdout, self._process.stderr):
            assert stream
            stream.close()
