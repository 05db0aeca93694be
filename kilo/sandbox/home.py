"""Directories that change hands: above all the one that is a process's own, handed to the user it becomes.

What an earlier life under another user left in there is removed, unless somebody still holds it locked.
Called by kilo.sandbox.entry before privileges are given up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable

LOCK = "lock"
MODE = 0o2750
"""Its group may look in; what is made there belongs to that group, whoever makes it."""


def hand_over(path: str, uid: int, gid: int, mode: int = MODE) -> None:
    """Give ``path`` to user and group, if it is a directory, without what others left in it."""
    give(path, uid, gid, mode, lambda folder: _clear(folder, uid))


def give(
    path: str, uid: int, gid: int, mode: int, meanwhile: Callable[[int], None] = lambda folder: None
) -> None:
    """Give ``path`` to user and group, if it is a directory: by way of this process's user, who may do with
    it what needs no other privilege then. ``meanwhile`` is called with its descriptor while it is ours. What
    cannot be done is left: who needs it then finds that out, and says so."""
    with contextlib.suppress(OSError):
        os.chown(path, os.geteuid(), gid, follow_symlinks=False)
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(folder, mode)
            meanwhile(folder)
            os.fchown(folder, uid, gid)
        finally:
            os.close(folder)


def _clear(folder: int, uid: int) -> None:
    """Nothing is removed while somebody lives there: he has the lock."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(LOCK, dir_fd=folder, follow_symlinks=False).st_uid != uid and _held(folder, LOCK):
            return
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            _remove_foreign(folder, name, uid)


def _remove_foreign(folder: int, name: str, uid: int) -> None:
    """Remove a file or socket of another user. It is not given to ours: it may have other names elsewhere."""
    state = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if state.st_uid == uid or stat.S_ISDIR(state.st_mode):
        return
    if stat.S_ISREG(state.st_mode) and _held(folder, name):
        return
    os.unlink(name, dir_fd=folder)


def _held(folder: int, name: str) -> bool:
    """Whether somebody has it locked."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=folder)
    except PermissionError:
        os.chown(name, os.geteuid(), -1, dir_fd=folder, follow_symlinks=False)
        fd = os.open(name, flags, dir_fd=folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
