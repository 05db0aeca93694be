"""A listing that is read a part at a time, so that a long one does not hold up the loop."""

from __future__ import annotations

import socket
import struct

from kilo.errors import TemporaryError
from kilo.netctl.netlink.socket import HEADER, NLM_F_REQUEST, Message, read_error, split

_NLM_F_DUMP = 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_PART = 1 << 15


class Listing:
    """The kernel's answer to one question. ``fileno`` makes it a source for the loop.

    What changes meanwhile may be missing from it, or be there twice.
    """

    def __init__(self, protocol: int, kind: int, body: bytes) -> None:
        """Ask. Raises TemporaryError."""
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as e:
            raise TemporaryError(f"netlink socket: {e.strerror}") from e
        self._socket.setblocking(False)
        try:
            flags = NLM_F_REQUEST | _NLM_F_DUMP
            self._socket.send(_HEADER.pack(HEADER + len(body), kind, flags, 1, 0) + body)
        except OSError as e:
            self._socket.close()
            raise TemporaryError(f"netlink: {e.strerror}") from e

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> tuple[list[Message], bool]:
        """The next part, of some 32 KiB, and whether it was the last. Raises KernelError, TemporaryError."""
        messages: list[Message] = []
        try:
            data = self._socket.recv(_PART)
        except BlockingIOError:
            return messages, False
        except OSError as e:
            raise TemporaryError(f"netlink: {e.strerror}") from e
        for kind, flags, _, port, _, start, end in split(data):
            if kind == _NLMSG_ERROR:
                refusal = read_error(flags, data, start, end)
                if refusal is not None:
                    raise refusal
            if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                return messages, True
            messages.append(Message(kind, flags, port, data, start, end))
        return messages, False

    def close(self) -> None:
        self._socket.close()
