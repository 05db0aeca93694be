"""The far end of a netlink socket: a test gives the answers, datagram by datagram, before it asks."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

from kilo.netctl.netlink.socket import Netlink

ERROR, DONE = 2, 3
MULTI, INTERRUPTED = 0x2, 0x10
_HEADER = struct.Struct("=IHHII")
N = TypeVar("N", bound=Netlink)


def message(kind: int, sequence: int, body: bytes = b"", flags: int = MULTI) -> bytes:
    """One message; its length is padded."""
    head = _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0)
    return head + body + bytes(-len(body) % 4)


def done(sequence: int, error: int = 0, flags: int = MULTI) -> bytes:
    """The end of a listing, which may say that it could not be completed."""
    return message(DONE, sequence, struct.pack("=i", -error), flags)


def refusal(sequence: int, error: int) -> bytes:
    """The kernel's answer that a request is refused; with 0 an acknowledgement."""
    return message(ERROR, sequence, struct.pack("=i", -error) + bytes(_HEADER.size), 0)


class Far:
    """The kernel's end of ``near``, which is put in the place of a real socket."""

    def __init__(self) -> None:
        self._end, self.near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end.setblocking(False)

    def answers(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self._end.send(datagram)

    def asked(self) -> list[tuple[int, int, int]]:
        """Kind, flags and sequence number of each request so far."""
        found: list[tuple[int, int, int]] = []
        while True:
            try:
                data = self._end.recv(1 << 16)
            except BlockingIOError:
                return found
            _, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            found.append((kind, flags, sequence))

    def close(self) -> None:
        self._end.close()


@contextmanager
def wired(make: Callable[[], N]) -> Iterator[tuple[N, Far]]:
    """A netlink socket as ``make`` makes it, with its time-out, and the far end that it speaks to."""
    with closing(Far()) as far, closing(make()) as netlink:
        real, netlink._socket = netlink._socket, far.near
        far.near.settimeout(real.gettimeout())
        real.close()
        yield netlink, far
