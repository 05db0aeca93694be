"""What passes on the wires of a host that only forwards, such as a router of the lab."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType

from tests.lab.host import Host

ETH_P_ALL = 3
ETH_P_IP = 0x0800
ETHERNET = 14
IPIP, TCP, UDP = 4, 6, 17
SO_RCVBUFFORCE = 33
BUFFER = 32 << 20


@dataclass(frozen=True)
class Packet:
    """An IPv4 packet on ``device``. ``inner``: what is in it, if it is IPIP; ports are of TCP and UDP."""

    device: str
    protocol: int
    source: IPv4Address
    target: IPv4Address
    ports: frozenset[int]
    inner: tuple[IPv4Address, IPv4Address] | None

    def touches(self, network: IPv4Network) -> bool:
        """Whether it comes from ``network`` or goes there, as far as the wire can tell."""
        return self.source in network or self.target in network

    def between(self) -> frozenset[str]:
        """Both ends, whatever the direction."""
        return frozenset((str(self.source), str(self.target)))


class Capture:
    """All IPv4 packets on all Ethernet devices of ``host`` while it is open.

    A packet that is forwarded is seen on the device where it comes in and on the one where it goes out.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.packets: list[Packet] = []

    def __enter__(self) -> Capture:
        self._socket = self._host.call(_open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._socket as raw:
            self.packets = list(_read(raw))


def _open() -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    raw.setblocking(False)
    return raw


def _read(raw: socket.socket) -> Iterator[Packet]:
    while True:
        try:
            data, (device, protocol, *_) = raw.recvfrom(1 << 16)
        except BlockingIOError:
            break
        if protocol == ETH_P_IP and device != "lo":
            yield _parse(device, data[ETHERNET:])
    dropped = struct.unpack("=II", raw.getsockopt(263, 6, 8))[1]  # SOL_PACKET, PACKET_STATISTICS
    assert not dropped, f"{dropped} packets were missed"


def _parse(device: str, data: bytes) -> Packet:
    source, target, protocol, rest = _header(data)
    ports: frozenset[int] = frozenset()
    if protocol in (TCP, UDP):
        ports = frozenset(struct.unpack_from("!HH", rest))
    inner = _header(rest)[:2] if protocol == IPIP else None
    return Packet(device, protocol, source, target, ports, inner)


def _header(data: bytes) -> tuple[IPv4Address, IPv4Address, int, bytes]:
    source, target = (IPv4Address(data[at : at + 4]) for at in (12, 16))
    return source, target, data[9], data[(data[0] & 15) * 4 :]
