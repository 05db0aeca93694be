"""Code of an attacker who has taken over a worker: ``python -m tests.e2e.hostile WORKER DEED [ARGUMENTS]``.

It is started as root on a host of the lab, becomes what the worker is, does its deed and prints what came of
it as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from kilo.config import Config
from kilo.model.workers import WORKERS
from kilo.sandbox import enter
from kilo.sandbox.profiles import profile_for

RUN = Path("/run/kilo")
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
"""ZMTP 3.1, as a subscriber begins."""


def attempt(deed: Callable[[], object]) -> str:
    """The name of the errno, "" if it went well."""
    try:
        deed()
    except OSError as e:
        return errno.errorcode.get(e.errno or 0, str(e))
    return ""


def others(name: str) -> list[str]:
    return [worker for worker in WORKERS if worker != name]


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mine:
        mine.bind(str(path))


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mine:
        mine.connect(str(path))


def seize(name: str) -> dict[str, dict[str, str]]:
    """Speak in another's place."""
    return {
        other: {
            "remove": attempt((RUN / other / "bus.sock").unlink),
            "bind": attempt(lambda path=RUN / other / "mine.sock": bind(path)),  # type: ignore[misc]
            "rename": attempt(lambda path=RUN / other: path.rename(RUN / "away")),  # type: ignore[misc]
            "lock": attempt(lambda path=RUN / other / "lock": path.write_text("")),  # type: ignore[misc]
        }
        for other in others(name)
    }


def listen(name: str) -> dict[str, str]:
    """Hear whom it need not hear, and ask the parent."""
    found = {other: attempt(lambda path=RUN / other / "bus.sock": connect(path)) for other in others(name)}  # type: ignore[misc]
    return {**found, "parent": attempt(lambda: connect(RUN / "control.sock"))}


def steal(name: str) -> dict[str, str]:
    paths = ("/var/lib/kilo/key", "/etc/shadow", "/root", "/etc/cni/net.d", "/proc/1/environ")
    return {path: attempt(lambda path=path: os.close(os.open(path, os.O_RDONLY))) for path in paths}  # type: ignore[misc]


def kill(name: str, *pids: str) -> dict[str, str]:
    return {pid: attempt(lambda pid=pid: os.kill(int(pid), signal.SIGKILL)) for pid in pids}  # type: ignore[misc]


def shout(name: str, target: str, megabytes: str) -> int:
    """Send garbage, what is too long, half of a message, and too many; how often it was cut off."""
    cut = 0
    length = (int(megabytes) << 20).to_bytes(8, "big")
    for words in (
        os.urandom(1 << 20),
        GREETING + READY + b"\x02" + length + bytes(1 << 20),
        GREETING + READY + b"\x00\x05\x01pl",
        GREETING + READY + b"\x00\x05\x01plan" * 200_000,
        GREETING + READY + b"".join(b"\x00\x3f\x01" + os.urandom(62) for _ in range(20_000)),
    ):
        with socket.socket(socket.AF_UNIX) as mine:
            mine.settimeout(5)
            mine.connect(str(RUN / target / "bus.sock"))
            try:
                for _ in range(int(megabytes)):
                    mine.sendall(words)
                while mine.recv(9999):
                    pass
                cut += 1  # after all was sent, where that was little
            except TimeoutError:
                pass
            except OSError:
                cut += 1
    return cut


def crowd(name: str, target: str, number: str) -> int:
    """Connect as often as that within 5 s, and stay; how often it could."""
    end = time.monotonic() + 5
    count = 0
    with contextlib.ExitStack() as stack:
        for _ in range(int(number)):
            mine = stack.enter_context(socket.socket(socket.AF_UNIX))
            mine.setblocking(False)
            while time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    mine.connect(str(RUN / target / "bus.sock"))
                    count += 1
                    break
            with contextlib.suppress(OSError):
                mine.send(GREETING)
        time.sleep(max(0, end - time.monotonic()))
    return count


def overhear(name: str, target: str, topic: str) -> str:
    """What is said of a topic within two seconds; the name of the errno for who may not listen at all."""
    heard = b""
    wanted = b"\x01" + topic.encode()
    with socket.socket(socket.AF_UNIX) as mine:
        mine.settimeout(2)
        try:
            mine.connect(str(RUN / target / "bus.sock"))
        except OSError as e:
            return errno.errorcode[e.errno or 0]
        mine.sendall(GREETING + READY + bytes((0, len(wanted))) + wanted)
        with contextlib.suppress(OSError):
            while said := mine.recv(9999):
                heard += said
    return heard.decode(errors="replace")


def dawdle(name: str, target: str, seconds: str) -> int:
    """Ask for everything again and again, and read nothing."""
    asked = 0
    end = time.monotonic() + float(seconds)
    context = zmq.Context()
    mine = context.socket(zmq.SUB)
    mine.set(zmq.RCVHWM, 1)
    mine.set(zmq.LINGER, 0)
    mine.connect(f"ipc://{RUN / target / 'bus.sock'}")
    while time.monotonic() < end:
        for topic in (b"plan", b"topology"):
            mine.subscribe(topic)
            mine.unsubscribe(topic)
            asked += 1
        time.sleep(0.002)
    return asked


DEEDS: dict[str, Callable[..., Any]] = {
    "seize": seize,
    "listen": listen,
    "steal": steal,
    "kill": kill,
    "shout": shout,
    "crowd": crowd,
    "overhear": overhear,
    "dawdle": dawdle,
}


def main(name: str, deed: str, *arguments: str) -> None:
    result = enter(profile_for(name, Config(hostname="x")))
    assert not result.refused, result.refused
    print(json.dumps(DEEDS[deed](name, *arguments)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
