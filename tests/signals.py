"""Signals as the programs under test expect them, however the test run was started.

A shell starts a background job with SIGINT ignored, and ``nohup`` ignores SIGHUP. What is ignored stays
ignored in every program that is started from there, so a test that ends a program with such a signal would
wait for ever.
"""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def do_nothing(number: int, frame: FrameType | None) -> None:
    """Go on ignoring the signal in this process."""


def reset_ignored() -> None:
    """Give each signal that is ignored a handler instead: programs that are started have the default action.

    ``execve`` resets handlers and keeps what is ignored. Only the main thread may call this.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, do_nothing)
