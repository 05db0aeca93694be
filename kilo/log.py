"""JSON lines on standard output: ``ts``, ``level``, ``component``, ``msg``, then fields.

One line is one write of at most LINE bytes, so that the lines of several processes on one pipe do
not mix. Logging raises nothing and holds nobody up: where nobody reads, lines are dropped and
counted, and the next one that gets through says how many were, as ``dropped``.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from typing import Any

import msgspec

from kilo.model.text import printable, printable_json

LEVELS = ("all", "debug", "info", "warn", "error", "none")
LINE = select.PIPE_BUF
"""Bytes: what a pipe takes as a whole or not at all."""
PATIENCE = 0.1
"""Seconds that are waited, all in all, for a reader that is behind ..."""
REGAINED = 0.05
"""... and how many of them come back with each second that passes."""
SHORTEST = 0.001
"""Seconds; the kernel does not wait for less."""
_MARGIN = 48
_FEW = 400
_encoder = msgspec.json.Encoder(enc_hook=str, order=None)
_UNFIT = (msgspec.EncodeError, TypeError, ValueError, OverflowError, RecursionError)


class Output:
    """A descriptor that is written without waiting for long, whoever else writes to it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._patience = PATIENCE
        self._since = time.monotonic()
        self._torn = False

    def write(self, line: bytes) -> bool:
        """Whether ``line``, of at most LINE - 1 bytes, was written as a whole. Raises nothing."""
        if self._torn:
            line = b"\n" + line
        try:
            written = self._put(line)
        except OSError:
            return False
        self._torn = 0 < written < len(line) or (self._torn and not written)
        return written == len(line)

    def _put(self, line: bytes) -> int:
        """How many bytes were taken, within what patience there is."""
        begun = time.monotonic()
        self._patience = min(PATIENCE, self._patience + (begun - self._since) * REGAINED)
        self._since = begun
        while True:
            if self._ready(0):
                with contextlib.suppress(BlockingIOError):  # somebody else was quicker
                    return os.write(self._fd, line)
            if self._patience < SHORTEST:
                return 0
            before = time.monotonic()
            ready = self._ready(self._patience)
            self._patience -= time.monotonic() - before
            if not ready:
                return 0

    def _ready(self, seconds: float) -> bool:
        """Whether a write would not have to wait now, or within ``seconds``."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))


def own_outputs() -> None:
    """Make standard output and error ours alone, and such that no write waits. For the start of a program.

    Whether a write waits is said of the open file, which the shell and its other programs share: so
    pipes and terminals are opened a second time. What cannot be, a socket for one, stays as it is,
    and ``Output`` looks before it writes. A descriptor that is closed would become some file's.
    """
    for fd in (0, 1, 2):
        try:
            kind = os.fstat(fd).st_mode
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(nothing, True)
            continue
        if fd and (stat.S_ISFIFO(kind) or os.isatty(fd)):
            with contextlib.suppress(OSError):
                own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
                os.dup2(own, fd)
                os.close(own)


_standard_error = Output(2)


def complain(text: str) -> None:
    """A line on standard error, if anybody reads there. Raises nothing."""
    text = "\n".join(map(printable, text.split("\n")))
    if len(text) > LINE - _MARGIN:
        text = _shortened(text, len(text) - LINE + 2 * _MARGIN)
    line = text.encode(errors="replace")[: LINE - 2]
    _standard_error.write(line + b"\n")


class _Sink:
    """What a logger shares with those that were made of it."""

    def __init__(self, level: str, output: Output) -> None:
        self.level = LEVELS.index(level)
        self.output = output
        self.dropped = 0
        self.untold = 0


class Logger:
    """A component's log. ``level`` may be changed at run time and holds for loggers made with bind."""

    def __init__(self, component: str, level: str = "info", fd: int = 1) -> None:
        self.component = component
        self._sink = _Sink(level, Output(fd))
        self._fields: dict[str, Any] = {}

    @property
    def level(self) -> str:
        return LEVELS[self._sink.level]

    @level.setter
    def level(self, value: str) -> None:
        self._sink.level = LEVELS.index(value)

    @property
    def dropped(self) -> int:
        """How many lines could not be written, since the start."""
        return self._sink.dropped

    def bind(self, **fields: Any) -> Logger:
        """A logger that adds ``fields`` to every line."""
        child = Logger.__new__(Logger)
        child.component, child._sink = self.component, self._sink
        child._fields = {**self._fields, **fields}
        return child

    def debug(self, msg: str, **fields: Any) -> None:
        self._write(1, msg, fields)

    def info(self, msg: str, **fields: Any) -> None:
        self._write(2, msg, fields)

    def warn(self, msg: str, **fields: Any) -> None:
        self._write(3, msg, fields)

    def error(self, msg: str, **fields: Any) -> None:
        self._write(4, msg, fields)

    def _write(self, level: int, msg: str, fields: dict[str, Any]) -> None:
        sink = self._sink
        if level < sink.level:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        record = {
            "ts": f"{stamp}.{int(now % 1 * 1000):03d}Z",
            "level": LEVELS[level],
            "component": self.component,
            "msg": msg,
            **self._fields,
            **fields,
        }
        untold = sink.untold
        if untold:
            record["dropped"] = untold
        if sink.output.write(encode(record)):
            sink.untold -= untold
        else:
            sink.untold += 1
            sink.dropped += 1


def encode(record: dict[str, Any]) -> bytes:
    """A record as a line of less than LINE bytes; texts that are too long lose their middle."""
    try:
        line = _encode(record)
    except _UNFIT:
        record = {key: value if _fits(value) else ascii(value) for key, value in record.items()}
        line = _encode(record)
    for _ in range(2 * len(record)):
        excess = len(line) + 2 - LINE
        if excess <= 0:
            break
        key = max(record, key=lambda k: len(_encode(record[k])))
        record[key] = _shortened(record[key], excess + _MARGIN)
        line = _encode(record)
    else:
        line = _encode(dict(list(record.items())[:4]))
    return line + b"\n"


def _encode(value: Any) -> bytes:
    """As JSON, without a character that a terminal would obey."""
    line = _encoder.encode(value)
    # An ASCII line has none but DEL: JSON escapes the others.
    return line if line.isascii() and b"\x7f" not in line else printable_json(line.decode()).encode()


def _fits(value: Any) -> bool:
    try:
        _encoder.encode(value)
    except _UNFIT:
        return False
    return True


def _shortened(value: Any, by: int) -> str:
    """A text, or anything as JSON, without ``by`` characters of its middle."""
    text = value if isinstance(value, str) else _encoder.encode(value).decode()
    kept = max(_FEW if len(text) > 2 * _FEW else 0, len(text) - by)
    half = kept // 2
    return f"{text[: kept - half]}[... {len(text) - kept} characters ...]{text[len(text) - half :]}"
