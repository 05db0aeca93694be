"""The lock that iptables-legacy takes while it changes a table: two writers would undo each other.

The kernel itself refuses a write only when the number of rules has changed since they were read.
Called by kilo.netctl.firewall.tables.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from kilo.errors import TemporaryError
from kilo.log import Logger

DEFAULT_PATH = "/run/xtables.lock"
WAIT = 0.5
"""Seconds. The worker's loop stands still meanwhile; it tries again a second later."""
_POLL = 0.01
_OUT_OF_REACH = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


class XtablesLock:
    """``with lock.held():`` keeps other writers away. Where the file is out of reach (a read-only
    container that was not given it), that is logged once and the write goes ahead.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._warned = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raises TemporaryError if somebody else holds the lock for longer than WAIT."""
        path = os.environ.get("XTABLES_LOCKFILE") or DEFAULT_PATH
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            if e.errno not in _OUT_OF_REACH:
                raise TemporaryError(f"{path}: {e.strerror}") from e
            if not self._warned:
                self._log.warn(
                    "writing firewall rules without the xtables lock", file=path, reason=e.strerror
                )
                self._warned = True
            yield
            return
        try:
            self._wait(fd, path)
            yield
        finally:
            os.close(fd)

    def _wait(self, fd: int, path: str) -> None:
        until = time.monotonic() + WAIT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                if time.monotonic() >= until:
                    raise TemporaryError(f"another program has held {path} for {WAIT} s") from e
                time.sleep(_POLL)
            else:
                return
