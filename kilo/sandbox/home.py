"""Directories that change hands: above all the one that is a process's own, handed to the user it becomes.

What an earlier life under another user left in there is removed, unless somebody still holds it locked, for
whose end the new one can then wait. Called by kilo.sandbox.entry before privileges are given up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable

LOCK = "lock"
MODE = 0o2750
"""Its group may look in; what is made there belongs to that group, whoever makes it."""
NO_LOCK = (errno.ENOENT, errno.ELOOP, errno.ENXIO)
"""There is none, it is a link, it is a socket: nobody has it locked."""


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
    """Nothing is removed while somebody lives there: he has the lock, as far as can be found out."""
    try:
        held = _held(folder, LOCK)
    except OSError as e:
        held = e.errno not in NO_LOCK
    if held:
        with contextlib.suppress(OSError):
            _let_ask(folder, uid)
        return
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            _remove_foreign(folder, name, uid)


def _let_ask(folder: int, uid: int) -> None:
    """Give the lock to ``uid``, who would else be told that it may not look, and not that it has to wait.
    Also where it was his: ``_held`` may have taken it. Who holds it goes on holding it. Not if the file has
    other names: it may be anybody's then."""
    fd = os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        state = os.fstat(fd)
        if stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
            os.fchown(fd, uid, -1)
    finally:
        os.close(fd)


def _remove_foreign(folder: int, name: str, uid: int) -> None:
    """Remove a file or socket of another user. It is not given to ours: it may have other names elsewhere."""
    state = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if state.st_uid == uid or stat.S_ISDIR(state.st_mode):
        return
    if stat.S_ISREG(state.st_mode) and _held(folder, name):
        return
    os.unlink(name, dir_fd=folder)


def _held(folder: int, name: str) -> bool:
    """Whether somebody has it locked. It is this process's user's afterwards, if nothing else let us look."""
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
