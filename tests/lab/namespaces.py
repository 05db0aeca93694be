"""Threads and processes inside the namespaces of another process.

A call runs in a thread of its own, which enters the namespaces and ends with the call; the rest of
the process stays where it is. What the thread opens (a socket) or starts (a process) stays inside.
Only tests/lab uses this.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
NET = ("net",)
ALL = ("uts", "net", "pid", "mnt")
"""``mnt`` comes last: /proc is another one afterwards. ``pid`` counts for children of the thread."""

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def call_apart(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread of its own, and hand on its result or exception.

    Who is interrupted meanwhile is so at once; the thread comes to its end by itself.
    """
    result: Future[T] = Future()

    def body() -> None:
        try:
            result.set_result(function())
        except BaseException as e:  # noqa: BLE001 - it is handed on
            result.set_exception(e)

    thread = threading.Thread(target=body, name="namespace", daemon=True)
    thread.start()
    value = result.result()
    thread.join()
    return value


def call_inside(pid: int, function: Callable[[], T], kinds: Sequence[str] = ALL) -> T:
    """Run ``function`` inside namespaces of process ``pid``. Raises OSError if that is gone.

    With ``pid`` among ``kinds``, ``function`` may start processes, but no threads.
    """
    return call_entered([f"/proc/{pid}/ns/{kind}" for kind in kinds], function)


def call_entered(paths: Sequence[str], function: Callable[[], T]) -> T:
    """Run ``function`` inside the namespaces whose files are ``paths``, entered in that order."""

    def body() -> T:
        descriptors = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
        try:
            _check(_libc.unshare(CLONE_FS), "unshare")
            for descriptor in descriptors:
                _check(_libc.setns(descriptor, 0), "setns")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return function()

    return call_apart(body)


def call_unshared(function: Callable[[], T]) -> T:
    """Run ``function`` in new namespaces of every kind; a process that it starts is PID 1 there."""

    def body() -> T:
        flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWPID | CLONE_NEWNET
        _check(_libc.unshare(flags), "unshare")
        return function()

    return call_apart(body)
