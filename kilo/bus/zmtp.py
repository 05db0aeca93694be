"""The producer's half of ZMTP 3.0, as far as a publisher needs it: what it says, and what it understands.

Values in, values out: no socket here (see kilo.bus.door). Subscribers are libzmq's. What one may say is
bounded, and nothing of it is kept but an unfinished piece of ``MOST_READY`` bytes at the most.
https://rfc.zeromq.org/spec/23/
"""

from __future__ import annotations

from kilo.errors import ProtocolError

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
"""Signature, version 3.0, no security, and filling: 64 bytes."""
_READY = b"\x05READY\x0bSocket-Type"
READY = b"\x04" + bytes((len(_READY) + 8,)) + _READY + (4).to_bytes(4, "big") + b"XPUB"
MOST_WANTED = 64
"""Bytes of what a subscriber says once it is there: the name of a topic."""
MOST_SAID = 64
"""How much one may say at once, and within a second: a subscription asks again once a second."""
MOST_READY = 255
"""The same for how it introduces itself."""
_MORE, _LONG, _COMMAND = 1, 2, 4
_TYPES = tuple(b"Socket-Type" + len(kind).to_bytes(4, "big") + kind for kind in (b"SUB", b"XSUB"))


def framed(topic: bytes, body: bytes) -> bytes:
    """What goes before ``body`` in a message of two parts: the topic's name, and the head of the second."""
    size = len(body)
    head = bytes((0, size)) if size < 256 else bytes((_LONG,)) + size.to_bytes(8, "big")
    return bytes((_MORE, len(topic))) + topic + head


class Caller:
    """What a subscriber has said so far."""

    __slots__ = ("_data", "_greeted", "ready")

    def __init__(self) -> None:
        self.ready = False
        """It has introduced itself: from then on it may be sent messages."""
        self._greeted = False
        self._data = b""

    def hear(self, data: bytes) -> list[bytes]:
        """The messages that end in ``data``: b"\\x01" and the name of a topic that it wants, b"\\x00" and one
        that it does not want any more, b"" for each command or first part, which mean nothing here but count.
        Raises ProtocolError: it is no subscriber, or says too much at once.
        """
        self._data += data
        if not self._greeted and not self._greet():
            return []
        found: list[bytes] = []
        at = 0
        while (part := self._part(at)) is not None:
            flags, body, at = part
            if not self.ready:
                self._introduce(flags, body)
                continue
            found.append(b"" if flags else body)
            if len(found) > MOST_SAID:
                raise ProtocolError("too much at once")
        self._data = self._data[at:]
        return found

    @property
    def greeted(self) -> bool:
        """It speaks this protocol: it is to be sent ``READY``."""
        return self._greeted

    def _greet(self) -> bool:
        """Whether the whole greeting is there."""
        data = self._data
        if data[:1] not in (b"", b"\xff") or (len(data) > 9 and not data[9] & 1):
            raise ProtocolError("not ZMTP")
        if len(data) < len(GREETING):
            return False
        if data[10] < 3 or data[12:32] != GREETING[12:32]:
            raise ProtocolError("not ZMTP 3 without security")
        self._data, self._greeted = data[len(GREETING) :], True
        return True

    def _part(self, at: int) -> tuple[int, bytes, int] | None:
        """Flags, body, and where the next one begins; None if it is not all there."""
        data = self._data
        if at == len(data):
            return None
        flags = data[at]
        start = at + (9 if flags & _LONG else 2)
        if len(data) < start:
            return None
        size = int.from_bytes(data[at + 1 : start], "big")
        if flags & ~(_MORE | _LONG | _COMMAND) or size > (MOST_WANTED if self.ready else MOST_READY):
            raise ProtocolError(f"flags {flags}, {size} bytes")
        if len(data) < start + size:
            return None
        return flags & ~_LONG, data[start : start + size], start + size

    def _introduce(self, flags: int, body: bytes) -> None:
        if flags != _COMMAND or not body.startswith(b"\x05READY") or not any(t in body for t in _TYPES):
            raise ProtocolError("not a subscriber")
        self.ready = True
