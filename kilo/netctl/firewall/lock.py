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
from kilo.netctl.firewall.attempts import Busy

DEFAULT_PATH = "/run/xtables.lock"
WAIT = 0.05
"""Seconds that a pass waits in all: the worker's loop stands still meanwhile."""
_POLL = 0.01
_OUT_OF_REACH = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


class XtablesLock:
    """``with lock.held():`` keeps other writers away. Where the file is out of reach (a read-only
    container that was not given it), that is logged once and the write goes ahead.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._warned = False
        self._until = 0.0

    def allow(self, seconds: float) -> None:
        """All waiting from now on may take so long."""
        self._until = time.monotonic() + seconds

    def is_free(self) -> bool:
        """Whether nobody else holds the lock now."""
        self.allow(0.0)
        try:
            with self.held():
                return True
        except TemporaryError:
            return False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raises Busy if somebody else holds the lock for longer than is allowed, or TemporaryError."""
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
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                if time.monotonic() >= self._until:
                    raise Busy(f"another program holds {path}") from e
                time.sleep(_POLL)
            else:
                return
