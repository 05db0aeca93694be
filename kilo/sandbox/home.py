"""The directory that is a process's own, handed to the user that it becomes.

What an earlier life under another user left in there is removed, unless somebody still holds it locked.
Called by kilo.sandbox.entry before privileges are given up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

MODE = 0o2750
"""Its group may look in; what is made there belongs to that group, whoever makes it."""


def hand_over(path: str, uid: int, gid: int) -> None:
    """Give ``path`` to user and group, if it is a directory. What cannot be done is left: the worker
    then finds that it cannot write there, and says so."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            state = os.fstat(folder)
            if (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) != (uid, gid, MODE):
                os.fchmod(folder, MODE)  # as long as it is ours
                os.fchown(folder, uid, gid)
            for name in os.listdir(folder):
                _remove_foreign(folder, name, uid)
        finally:
            os.close(folder)


def _remove_foreign(folder: int, name: str, uid: int) -> None:
    """Remove a file or socket of another user. It is not given to ours: it may have other names elsewhere."""
    state = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if state.st_uid == uid or stat.S_ISDIR(state.st_mode):
        return
    if stat.S_ISREG(state.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            os.close(fd)
    os.unlink(name, dir_fd=folder)
