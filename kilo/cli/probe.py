"""Whether a worker's loop turns: for liveness probes of containers that hold one worker each.

``python3 -m kilo.cli.probe WORKER`` subscribes to the worker's state and waits for one message of it.
ZeroMQ's own thread would accept a connection all the same; the message is sent from the loop.
A kubelet runs this for as long as the node lives, so it imports nothing but the standard library and
speaks what little of ZMTP 3.0 that takes by itself: a fifth of the time that the libraries of the bus
need to be imported. https://rfc.zeromq.org/spec/23/
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

WORKERS = ("watcher", "mesh", "netctl", "cni", "health")
USAGE = f"Usage: python3 -m kilo.cli.probe {'|'.join(WORKERS)} [RUN_DIR]"
ALIVE, SILENT, USAGE_ERROR = 0, 1, 2
PATIENCE = 3.0
"""Seconds for each step; a loop that turns answers in milliseconds."""

_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY" + b"\x0bSocket-Type" + (3).to_bytes(4, "big") + b"SUB"
_MORE, _LONG, _COMMAND = 1, 2, 4
_LARGEST = 1 << 20


def main(arguments: Sequence[str]) -> int:
    """Exit status 0: the worker answers. 1: it does not, and standard error says why. 2: usage."""
    if not 1 <= len(arguments) <= 2 or arguments[0] not in WORKERS:
        print(USAGE, file=sys.stderr)
        return USAGE_ERROR
    worker = arguments[0]
    run_dir = arguments[1] if arguments[1:] else os.environ.get("KILO_RUN_DIR", "/run/kilo")
    try:
        hear(run_dir, worker)
    except OSError as e:
        print(f"{worker} does not answer in {run_dir}: {e.strerror or e}", file=sys.stderr)
        return SILENT
    return ALIVE


def hear(run_dir: str, worker: str) -> None:
    """Return once a message of the worker's own state has come. Raises OSError if none does."""
    topic = f"{worker}.state".encode()
    with socket.socket(socket.AF_UNIX) as bus:
        bus.settimeout(PATIENCE)
        bus.connect(f"{run_dir}/{worker}/bus.sock")
        bus.sendall(_GREETING)
        _receive(bus, len(_GREETING))  # libzmq hangs up on whoever does not wait for this
        bus.sendall(_frame(_READY, _COMMAND) + _frame(b"\x01" + topic))
        while True:
            flags, body = _receive_frame(bus)
            if flags & _MORE and body == topic:
                return


def _frame(body: bytes, flags: int = 0) -> bytes:
    return bytes((flags, len(body))) + body


def _receive_frame(bus: socket.socket) -> tuple[int, bytes]:
    flags = _receive(bus, 1)[0]
    size = int.from_bytes(_receive(bus, 8 if flags & _LONG else 1), "big")
    if size > _LARGEST:
        raise OSError(f"a message of {size} bytes")
    return flags, _receive(bus, size)


def _receive(bus: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = bus.recv(size - len(data))
        if not part:
            raise ConnectionResetError("it closed the connection")
        data += part
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
