"""Closes what a process inherited and does not need."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

STANDARD = frozenset((0, 1, 2))


def close_others(keep: Iterable[int]) -> None:
    """Close every descriptor but the standard ones and ``keep``. Raises OSError if they cannot be listed.

    For a process in which nothing else owns one: an object that closes its own later would close
    whatever has that number by then.
    """
    kept = STANDARD.union(keep)
    for fd in open_descriptors():
        if fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def open_descriptors() -> set[int]:
    """Those of this process, without the one that the question takes. Raises OSError."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.add(fd)
    return found
