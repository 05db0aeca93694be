"""A listing that is read a part at a time, so that a long one does not hold up the loop."""

from __future__ import annotations

import socket

from kilo.errors import TemporaryError
from kilo.netctl.netlink.socket import NLM_F_DUMP, Message, question, read_part, receive

_SEQUENCE = 1
_PART = 1 << 15


class Listing:
    """The kernel's answer to one question. ``fileno`` makes it a source for the loop.

    What changes meanwhile may be missing from it, or be there twice. ``consistent``: the kernel has not said
    that it was interrupted.
    """

    def __init__(self, protocol: int, kind: int, body: bytes) -> None:
        """Ask. Raises TemporaryError."""
        self.consistent = True
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as e:
            raise TemporaryError(f"netlink socket: {e.strerror}") from e
        self._socket.setblocking(False)
        try:
            self._socket.send(question(kind, NLM_F_DUMP, _SEQUENCE, body))
        except OSError as e:
            self._socket.close()
            raise TemporaryError(f"netlink: {e.strerror}") from e

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> tuple[list[Message], bool]:
        """The next part, of some 32 KiB, and whether it was the last. Raises KernelError, TemporaryError."""
        try:
            data = receive(self._socket, _PART)
        except BlockingIOError:
            return [], False
        except OSError as e:
            raise TemporaryError(f"netlink: {e.strerror}") from e
        part = read_part(data, _SEQUENCE)
        self.consistent = self.consistent and part.consistent
        return part.messages, part.last

    def close(self) -> None:
        self._socket.close()
