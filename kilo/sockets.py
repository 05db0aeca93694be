"""What is set on Unix sockets at whose other end somebody is who may have been taken over.

May be used by every package.
"""

from __future__ import annotations

import contextlib
import socket

SO_PASSRIGHTS = 83


def take_no_descriptors(end: socket.socket) -> None:
    """Refuse descriptors (SCM_RIGHTS) that are sent to ``end``, or to what a listening ``end`` takes in.

    What nobody asked for, the kernel closes within recv or close, and a socket that lingers (SO_LINGER) keeps
    the receiver there for as long as the sender said. Linux 6.16 and later; before, nothing can be done here.
    """
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
