"""JSON lines on standard output: ``ts``, ``level``, ``component``, ``msg``, then fields.

One line is one write, so that the lines of several processes on one pipe do not mix.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import msgspec

LEVELS = ("all", "debug", "info", "warn", "error", "none")
_encoder = msgspec.json.Encoder(enc_hook=str, order=None)


class Logger:
    """A component's log. ``level`` may be changed at run time and holds for loggers made with bind."""

    def __init__(self, component: str, level: str = "info", fd: int = 1) -> None:
        self.component = component
        self._shared = {"level": LEVELS.index(level)}
        self._fd = fd
        self._fields: dict[str, Any] = {}

    @property
    def level(self) -> str:
        return LEVELS[self._shared["level"]]

    @level.setter
    def level(self, value: str) -> None:
        self._shared["level"] = LEVELS.index(value)

    def bind(self, **fields: Any) -> Logger:
        """A logger that adds ``fields`` to every line."""
        child = Logger.__new__(Logger)
        child.component, child._shared, child._fd = self.component, self._shared, self._fd
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
        if level < self._shared["level"]:
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
        try:
            os.write(self._fd, _encoder.encode(record) + b"\n")
        except (OSError, msgspec.EncodeError, TypeError) as e:  # a log that cannot be written stops nobody
            print(f"kg: log line lost: {e}", file=sys.stderr)
