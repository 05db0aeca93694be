"""Pings from inside namespaces, sent by this process over raw sockets that were opened there."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from itertools import count, pairwise

ECHO_REPLY = 0
ECHO_REQUEST = 8
_identifiers = count(0x4B00)


def open_socket() -> socket.socket:
    """A raw ICMP socket in the namespace of the calling thread."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    raw.setblocking(False)
    return raw


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return 0xFFFF & ~int(total + (total >> 16))


def request(identifier: int, sequence: int) -> bytes:
    """An ICMP echo request with 16 bytes of payload."""
    payload = b"kilo lab, hello!"
    header = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, sequence)
    return struct.pack("!BBHHH", ECHO_REQUEST, 0, checksum(header + payload), identifier, sequence) + payload


def replies(raw: socket.socket, identifiers: Container[int]) -> list[int]:
    """The sequence numbers of the replies to any of ``identifiers`` that wait in ``raw``."""
    found: list[int] = []
    while True:
        try:
            packet = raw.recv(2048)
        except BlockingIOError:
            return found
        except OSError:
            continue
        start = (packet[0] & 15) * 4
        kind, _, _, its, sequence = struct.unpack("!BBHHH", packet[start : start + 8])
        if kind == ECHO_REPLY and its in identifiers:
            found.append(sequence)


def send(raw: socket.socket, target: str, packet: bytes) -> None:
    """Send, or lose the packet where there is no route: the missing reply will say so."""
    try:
        raw.sendto(packet, (target, 0))
    except OSError:
        return


def reachable(
    sources: Mapping[str, socket.socket], targets: Mapping[str, str], seconds: float, gap: float = 0.1
) -> dict[tuple[str, str], float]:
    """Ping every target from every source until all have answered once, or ``seconds`` are over.

    ``targets`` maps names to addresses; a name does not ping itself. Returns for each pair that
    answered the seconds since its last ping.

    Each attempt has an identifier of its own, since the kernel stays with the source address that it
    chose for the first packet of one. The two directions of a pair take turns: two WireGuard peers
    that begin a handshake at the same moment refuse each other's, and try again only after 5 s.
    """
    pairs = [(a, b) for a in sources for b in targets if a != b]
    identifiers: set[int] = set()
    start = time.monotonic()
    answered: dict[tuple[str, str], float] = {}
    sent: dict[tuple[str, str], float] = {}
    following = 0.0
    forward = True
    while len(answered) < len(pairs) and (now := time.monotonic() - start) < seconds:
        if now >= following:
            following = now + gap / 2
            forward = not forward
            identifier = next(_identifiers) & 0xFFFF
            identifiers.add(identifier)
            for number, (a, b) in enumerate(pairs):
                if (a, b) not in answered and (a < b) == forward:
                    sent[a, b] = time.monotonic()
                    send(sources[a], targets[b], request(identifier, number))
        ready, _, _ = select.select(list(sources.values()), [], [], gap / 4)
        for raw in ready:
            for number in replies(raw, identifiers):
                pair = pairs[number]
                answered.setdefault(pair, time.monotonic() - sent[pair])
    return answered


@dataclass(frozen=True)
class Loss:
    """A ping without an answer: its number, and the second, by time.monotonic(), at which it was sent."""

    sequence: int
    sent: float


class Pinger:
    """Pings ``target`` every ``interval`` seconds from ``raw``, in a thread, until stopped."""

    def __init__(self, raw: socket.socket, target: str, interval: float = 0.02) -> None:
        self._raw = raw
        self._target = target
        self._interval = interval
        self._identifier = next(_identifiers) & 0xFFFF
        self._sent: list[float] = []
        self._answered: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"ping {target}", daemon=True)
        self._thread.start()

    @property
    def sent(self) -> int:
        return len(self._sent)

    def _run(self) -> None:
        following = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= following:
                self._sent.append(now)
                send(self._raw, self._target, request(self._identifier, (len(self._sent) - 1) & 0xFFFF))
                following = max(following + self._interval, now)
            self._listen(max(0.0, following - time.monotonic()))

    def _listen(self, seconds: float) -> None:
        ready, _, _ = select.select([self._raw], [], [], seconds)
        if ready:
            newest = len(self._sent) - 1
            for low in replies(self._raw, (self._identifier,)):
                self._answered.add(newest - ((newest - low) & 0xFFFF))

    def losses(self, grace: float = 1.0) -> list[Loss]:
        """What has not been answered of all that was sent more than ``grace`` seconds ago."""
        limit = time.monotonic() - grace
        return [
            Loss(number, sent)
            for number, sent in enumerate(self._sent)
            if sent < limit and number not in self._answered
        ]

    def end(self) -> None:
        """Send no more; ``stop`` is still due."""
        self._stop.set()

    def stop(self, grace: float = 1.0) -> list[Loss]:
        """Send no more, wait ``grace`` seconds for answers on the way, and return all losses."""
        self.end()
        self._thread.join()
        deadline = time.monotonic() + grace
        while len(self._answered) < len(self._sent) and (left := deadline - time.monotonic()) > 0:
            self._listen(left)
        self._raw.close()
        return self.losses(0)

    def last_answered(self) -> float:
        """When the newest ping that has been answered was sent, by time.monotonic(); 0 before the first."""
        newest = max(self._answered, default=-1)
        return self._sent[newest] if newest >= 0 else 0.0

    def longest_silence(self) -> float:
        """Seconds in which nothing was answered: from the last answered ping before a row of lost ones,
        by when it was sent, to the first one after it."""
        answered = [sent for number, sent in enumerate(self._sent) if number in self._answered]
        if not self._sent:
            return 0.0
        marks = [self._sent[0], *answered, self._sent[-1]]
        return max(after - before for before, after in pairwise(marks))
