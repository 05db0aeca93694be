"""A netlink socket: batches of changes with an error for each one, dumps, and multicast events.

The kernel answers within the system call that asks, so nothing here waits for long. Any protocol
of netlink will do: routing, generic netlink, netfilter.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kilo.errors import TemporaryError
from kilo.netctl.netlink.attributes import as_text, parse

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NETLINK_GENERIC = 16

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
_NLM_F_DUMP_INTR = 0x10
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_NLMSGERR_ATTR_MSG = 1

_HEADER = struct.Struct("=IHHII")
HEADER = _HEADER.size
_ERROR = struct.Struct("=i")
_BATCH = 200
_BUFFER = 1 << 20
EVENT_BUFFER = 8 << 20
_READ = 1 << 16
_DUMP_TRIES = 5
_CUT_OFF = "netlink: a message of the kernel's is cut off"
_TIMEOUT = 2.0


class KernelError(TemporaryError):
    """The kernel refused a change. ``errno``, and the kernel's own words where it gave any."""

    def __init__(self, number: int, words: str = "") -> None:
        self.errno = number
        name = "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))
        text = os.strerror(number)
        super().__init__(f"{words.rstrip('.')}: {text} ({name})" if words else f"{text} ({name})")


class EventsLost(Exception):
    """The kernel dropped events that nobody had read in time: read everything again."""


class Request(NamedTuple):
    """One message to send: its type, flags beside NLM_F_REQUEST, and all that follows the header."""

    kind: int
    flags: int
    body: bytes


class Message(NamedTuple):
    """One message received: its type and flags, the port of who caused it, its body, ``data[start:end]``."""

    kind: int
    flags: int
    port: int
    data: bytes
    start: int
    end: int


class Part(NamedTuple):
    """Of an answer, what came in one datagram. ``consistent``: nothing changed while it was read."""

    messages: list[Message]
    last: bool
    consistent: bool


class Netlink:
    """A socket of one netlink protocol. ``sent`` counts the changes that were sent."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self.sent = 0
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
            self._socket.bind((0, 0))
        except OSError as e:
            raise TemporaryError(f"netlink socket: {e.strerror}") from e
        self._socket.settimeout(_TIMEOUT)
        self.port: int = self._socket.getsockname()[0]
        self._option(_NETLINK_CAP_ACK)
        self._option(_NETLINK_EXT_ACK)
        self._option(_NETLINK_GET_STRICT_CHK)
        _receive_buffer(self._socket, _BUFFER)

    def close(self) -> None:
        self._socket.close()

    def _option(self, option: int) -> None:
        """Switch an option on. Kernels that do not know it answer in an older form, which is read too."""
        try:
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        except OSError:
            return

    def change(self, requests: Sequence[Request]) -> list[KernelError | None]:
        """Send changes, in this order; for each None, or why the kernel refused it.

        One that is refused does not keep the ones behind it from being tried. Raises
        TemporaryError if the answers were lost; then what became of the changes is not known.
        """
        results: list[KernelError | None] = []
        for start in range(0, len(requests), _BATCH):
            results += self._batch(requests[start : start + _BATCH])
        return results

    def _batch(self, requests: Sequence[Request]) -> list[KernelError | None]:
        """Only the last message asks for an acknowledgement: the others answer if they are refused."""
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(requests)
        parts: list[bytes] = []
        for sequence, (kind, flags, body) in enumerate(requests, first):
            flags |= NLM_F_REQUEST | (NLM_F_ACK if sequence == last else 0)
            parts += (_HEADER.pack(HEADER + len(body), kind, flags, sequence, 0), body, bytes(-len(body) % 4))
        self.sent += len(requests)
        self._send(b"".join(parts))
        results: list[KernelError | None] = [None] * len(requests)
        while True:
            for kind, flags, sequence, _, data, start, end in split(self._receive()):
                if kind != _NLMSG_ERROR or not first <= sequence <= last:
                    continue
                results[sequence - first] = read_error(flags, data, start, end)
                if sequence == last:
                    return results

    def dump(self, kind: int, body: bytes, optional: bool = False) -> list[Message]:
        """All that the kernel lists for one request: nothing, with ``optional``, if it does not know
        the family asked about. Raises KernelError, TemporaryError."""
        for _ in range(_DUMP_TRIES):
            try:
                messages, consistent = self._ask(kind, NLM_F_DUMP, body)
            except KernelError as e:
                if optional and e.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                    return []
                raise
            if consistent:
                return messages
        raise TemporaryError("the kernel's tables change faster than they can be read")

    def ask(self, kind: int, body: bytes) -> list[Message]:
        """The answer to a question that is no listing. Raises KernelError, TemporaryError."""
        return self._ask(kind, NLM_F_ACK, body)[0]

    def _ask(self, kind: int, flags: int, body: bytes) -> tuple[list[Message], bool]:
        """The answer, and whether it is consistent in itself."""
        sequence = self._sequence = self._sequence + 1
        self._send(question(kind, flags, sequence, body))
        messages: list[Message] = []
        consistent = True
        while True:
            part = read_part(self._receive(), sequence)
            messages += part.messages
            consistent = consistent and part.consistent
            if part.last:
                return messages, consistent

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except TimeoutError as e:
            raise TemporaryError("netlink: the kernel accepts no request") from e
        except OSError as e:
            raise TemporaryError(f"netlink: {e.strerror}") from e

    def _receive(self) -> bytes:
        try:
            return receive(self._socket, _READ)
        except TimeoutError as e:
            raise TemporaryError("netlink: the kernel does not answer") from e
        except OSError as e:
            raise TemporaryError(f"netlink: {e.strerror}") from e


class Events:
    """A socket that hears what changes. ``fileno`` makes it a source for the loop."""

    def __init__(self, protocol: int, groups: Iterable[int], buffer: int = EVENT_BUFFER) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError as e:
            raise TemporaryError(f"netlink events: {e.strerror}") from e
        self._socket.setblocking(False)
        _receive_buffer(self._socket, buffer)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, limit: int) -> list[Message]:
        """What has been heard, in order; once about ``limit`` messages are read the rest must wait.

        Raises EventsLost, once the rest has been thrown away: the kernel reports no further loss
        before its queue was empty, and what is read after this is whole again.
        """
        messages: list[Message] = []
        while len(messages) < limit:
            try:
                data = receive(self._socket, _READ)
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno in (errno.ENOBUFS, errno.EMSGSIZE):
                    self._discard()
                    raise EventsLost from e
                raise TemporaryError(f"netlink events: {e.strerror}") from e
            try:
                parts = list(split(data))
            except TemporaryError as e:
                self._discard()
                raise EventsLost from e
            messages += [Message(kind, flags, port, data, s, e) for kind, flags, _, port, _, s, e in parts]
        return messages

    def _discard(self) -> None:
        while True:
            try:
                self._socket.recv(_READ)
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise TemporaryError(f"netlink events: {e.strerror}") from e

    def close(self) -> None:
        self._socket.close()


def question(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A message that asks, alone in its datagram; what comes is for ``read_part``."""
    return _HEADER.pack(HEADER + len(body), kind, NLM_F_REQUEST | flags, sequence, 0) + body


def receive(sock: socket.socket, size: int) -> bytes:
    """The next datagram. Raises OSError; EMSGSIZE if it has more than ``size`` bytes.

    What is cut off is lost: the rest would pass for the whole.
    """
    data, _, flags, _ = sock.recvmsg(size)
    if flags & socket.MSG_TRUNC:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return data


def split(data: bytes) -> Iterator[tuple[int, int, int, int, bytes, int, int]]:
    """The messages of one datagram: type, flags, sequence, port, the datagram, body's start and end.

    Raises TemporaryError where one is not whole.
    """
    offset, size = 0, len(data)
    while offset < size:
        if offset + HEADER > size:
            raise TemporaryError(_CUT_OFF)
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < HEADER or offset + length > size:
            raise TemporaryError(_CUT_OFF)
        yield kind, flags, sequence, port, data, offset + HEADER, offset + length
        offset += length + 3 & ~3


def read_part(data: bytes, sequence: int) -> Part:
    """What a datagram has of the answer to request ``sequence``.

    Raises KernelError if it was refused, or a listing could not be completed.
    """
    messages: list[Message] = []
    consistent = True
    for kind, flags, answers, port, _, start, end in split(data):
        if answers != sequence:
            continue
        consistent = consistent and not flags & _NLM_F_DUMP_INTR
        if kind == _NLMSG_ERROR:
            refusal = read_error(flags, data, start, end)
            if refusal is not None:
                raise refusal
        if kind == _NLMSG_DONE and end - start >= _ERROR.size:
            (number,) = _ERROR.unpack_from(data, start)
            if number < 0:  # the listing ends early: a part of it would pass for the whole
                raise KernelError(-number)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR):
            return Part(messages, True, consistent)
        messages.append(Message(kind, flags, port, data, start, end))
    return Part(messages, False, consistent)


def read_error(flags: int, data: bytes, start: int, end: int) -> KernelError | None:
    """What an NLMSG_ERROR says: None is an acknowledgement."""
    (number,) = _ERROR.unpack_from(data, start)
    if number == 0:
        return None
    words = ""
    if flags & _NLM_F_ACK_TLVS:
        original = start + _ERROR.size
        size = HEADER if flags & _NLM_F_CAPPED else _HEADER.unpack_from(data, original)[0] + 3 & ~3
        words = as_text(parse(data, original + size, end).get(_NLMSGERR_ATTR_MSG, b""))
    return KernelError(-number, words)


def _receive_buffer(sock: socket.socket, size: int) -> None:
    """A receive buffer of ``size`` bytes, beyond the system's limit where we may."""
    so_rcvbufforce = 33
    try:
        sock.setsockopt(socket.SOL_SOCKET, so_rcvbufforce, size)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
