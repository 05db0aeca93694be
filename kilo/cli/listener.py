"""Who listens on a Unix socket, by the kernel's word."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

_CREDENTIALS = struct.Struct("=3i")


def listener_of(path: Path) -> int | None:
    """The process id of who listens on ``path``, as this process knows it: 0 if that is in a namespace that
    cannot be seen from here, None if nobody listens, or this user may not connect."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
        try:
            caller.connect(str(path))
            found = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
    return int(_CREDENTIALS.unpack(found)[0])
