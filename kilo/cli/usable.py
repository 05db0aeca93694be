"""Whether the configuration of the API can be used: looked at before the agent makes anything on the host.

The watcher would find out the same, but beside workers that have made a key and directories by then.
Called by kilo.cli.main.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

from kilo.config import Config
from kilo.errors import PermanentError
from kilo.log import complain

PATIENCE = 5.0
"""Seconds; a file may be somewhere that does not answer."""
USABLE, REFUSED = 0, 2


def refuse(config: Config) -> None:
    """Raises PermanentError as the watcher would at its start. No program is run and nobody is asked."""
    from kilo.watcher.client import Api  # large

    Api(config.kubeconfig, config.master).close()


def _closed(error: PermanentError, path: str) -> bool:
    """Whether this process has no right to read what the configuration needs."""
    if isinstance(error.__cause__, PermissionError):
        return True
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        pass
    return False


class Look:
    """The same in a process of its own, so that this one never loads what only the watcher needs, and may
    load its own code meanwhile. For a process with one thread. A look that fails refuses nothing; nor does
    what may not be read here, since the watcher is another user, who may have the right."""

    def __init__(self, config: Config) -> None:
        self._pid = 0
        with contextlib.suppress(OSError):
            self._pid = os.fork()
            if not self._pid:
                _look(config)

    def refused(self) -> bool:
        """Wait for it; whether it has said, on standard error, that the configuration cannot be used."""
        if not self._pid:
            return False
        with contextlib.suppress(OSError):
            end = os.pidfd_open(self._pid)
            try:
                if not select.select([end], [], [], PATIENCE)[0]:
                    signal.pidfd_send_signal(end, signal.SIGKILL)
                    select.select([end], [], [], 1.0)
            finally:
                os.close(end)
            _, status = os.waitpid(self._pid, os.WNOHANG)  # the parent takes one that cannot be killed, later
            return os.waitstatus_to_exitcode(status) == REFUSED
        return False


def _look(config: Config) -> None:
    """Never returns."""
    status = 1
    try:
        refuse(config)
        status = USABLE
    except PermanentError as e:
        if not _closed(e, config.kubeconfig):
            complain(f"kg: {e}")
            status = REFUSED
    finally:
        os._exit(status)
