"""nf_tables by netlink: questions, and transactions that are done as a whole or not at all.

Works on the network namespace of the thread that makes the socket. Called by the nft… modules.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from kilo.errors import TemporaryError
from kilo.netctl.firewall.nft_expressions import be32
from kilo.netctl.firewall.nft_messages import (
    BATCH_BEGIN,
    BATCH_BOUND,
    BATCH_END,
    GET_COMPAT,
    GETCHAIN,
    GETGEN,
    header,
    parse_generation,
)
from kilo.netctl.netlink.attributes import text
from kilo.netctl.netlink.socket import (
    HEADER,
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_REQUEST,
    KernelError,
    Message,
    Netlink,
    Request,
    read_error,
    split,
)

_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_SO_SNDBUFFORCE = 32
_SPARE = 1 << 16
ABSENT = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
"""What the kernel says where it has no nf_tables, or not for this IP version."""


class Refused(NamedTuple):
    """The first request of a transaction that the kernel refused; -1 if it was the transaction itself."""

    position: int
    error: KernelError


class NftSocket(Netlink):
    """A socket for nf_tables. Raises TemporaryError if the kernel has no netfilter netlink."""

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER)

    def generation(self) -> int:
        """A number that every transaction of anybody's in this namespace moves. Raises KernelError."""
        return parse_generation(self.ask(GETGEN, header(0))[0])

    def chains(self, version: int) -> list[Message]:
        """All chains of all tables of an IP version."""
        return self.dump(GETCHAIN, header(version), optional=True)

    def has_match(self, version: int, name: str, revision: int) -> bool:
        """Whether rules can have this match of xtables, or the kernel could load what it lacks."""
        body = header(version) + text(1, name) + be32(2, revision) + be32(3, 0)
        try:
            self.ask(GET_COMPAT, body)
        except KernelError:
            return False
        return True

    def commit(self, requests: Sequence[Request]) -> Refused | None:
        """Do all of ``requests``, or, if the kernel refuses one of them, none.

        Raises TemporaryError if the answer was lost; then what became of them is not known.
        """
        self.sent += len(requests)
        return self._transact(requests, commit=True)

    def rehearse(self, requests: Sequence[Request]) -> Refused | None:
        """Have the kernel check ``requests`` as ``commit`` would, and do nothing."""
        return self._transact(requests, commit=False)

    def _transact(self, requests: Sequence[Request], commit: bool) -> Refused | None:
        """The kernel throws away a transaction that has no end.

        The last request asks for an acknowledgement. An error about the beginning is one about
        the whole, such as a lack of memory or of a capability, and is the last word.
        """
        first = self._sequence + 1
        last = first + len(requests)
        self._sequence = last + 1
        messages = [_message(Request(BATCH_BEGIN, 0, BATCH_BOUND), first)]
        for sequence, request in enumerate(requests, first + 1):
            messages.append(_message(request, sequence, NLM_F_ACK if sequence == last else 0))
        if commit:
            messages.append(_message(Request(BATCH_END, 0, BATCH_BOUND), last + 1))
        self._send_all(b"".join(messages))
        refused: Refused | None = None
        while True:
            for kind, flags, sequence, _, data, start, end in split(self._receive()):
                if kind != _NLMSG_ERROR or not first <= sequence <= last:
                    continue
                error = read_error(flags, data, start, end)
                if error is not None and refused is None:
                    refused = Refused(sequence - first - 1, error)
                if sequence == last or (sequence == first and error is not None):
                    return refused

    def _send_all(self, data: bytes) -> None:
        """A transaction is one datagram: the buffer must have room for it."""
        if len(data) > self._room:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(data) + _SPARE)
            except OSError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(data) + _SPARE)
        self._send(data)

    @property
    def _room(self) -> int:
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _SPARE


def _message(request: Request, sequence: int, flags: int = 0) -> bytes:
    kind, own_flags, body = request
    head = _HEADER.pack(HEADER + len(body), kind, own_flags | flags | NLM_F_REQUEST, sequence, 0)
    return head + body + bytes(-len(body) % 4)


def is_absence(error: TemporaryError) -> bool:
    """Whether an error says that the kernel has no nf_tables, or no netfilter netlink at all."""
    cause = error if isinstance(error, KernelError) else error.__cause__
    return getattr(cause, "errno", 0) in ABSENT
