"""A WireGuard device of the kernel's, over generic netlink.

A message holds at most 64 kB, and a list in it less: changes go in parts, and a peer with more
allowed IPs than fit is continued in a message of its own. What is read comes in parts likewise.
"""

from __future__ import annotations

import base64
import errno
import socket
import struct
from collections.abc import Iterator, Sequence

from kilo.errors import ProtocolError, TemporaryError
from kilo.model.keys import PresharedKey
from kilo.model.net import parse_interface
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink import generic
from kilo.netctl.netlink.attributes import (
    U16,
    U64,
    attribute,
    ip_text,
    nested,
    pack_ip,
    parse,
    text,
    u32,
    walk,
)
from kilo.netctl.netlink.socket import NETLINK_GENERIC, Netlink, Request
from kilo.netctl.wireguard.device import (
    NO_ENDPOINT,
    DeviceRefused,
    DeviceState,
    Parsed,
    PeerChange,
    PeerState,
    one_by_one,
)

CHUNK = 600
"""Allowed IPs (about 36 bytes each), with 4 for a peer, that go into one message."""

_FAMILY = "wireguard"
_GET_DEVICE, _SET_DEVICE = 0, 1
_DEVICE_IFNAME, _DEVICE_PRIVATE_KEY, _DEVICE_LISTEN_PORT, _DEVICE_PEERS = 2, 3, 6, 8
_PEER_PUBLIC_KEY, _PEER_PRESHARED_KEY, _PEER_FLAGS, _PEER_ENDPOINT, _PEER_KEEPALIVE = 1, 2, 3, 4, 5
_PEER_LAST_HANDSHAKE, _PEER_RX_BYTES, _PEER_TX_BYTES, _PEER_ALLOWEDIPS = 6, 7, 8, 9
_REMOVE_ME, _REPLACE_ALLOWEDIPS = 1, 2
_ALLOWEDIP_FAMILY, _ALLOWEDIP_IPADDR, _ALLOWEDIP_CIDR_MASK = 1, 2, 3
_SOCKADDR_IN = struct.Struct("=H2s4s8x")
_SOCKADDR_IN6 = struct.Struct("=H2s4x16s4x")
_SECONDS = struct.Struct("=q")
_NO_KEY = bytes(32)


class Kernel:
    """The device ``interface``. Raises KernelError at once if the kernel has no WireGuard."""

    kind = "kernel"

    def __init__(self, interface: str) -> None:
        self._name = text(_DEVICE_IFNAME, interface)
        self._netlink = Netlink(NETLINK_GENERIC)
        self._parsed: Parsed[bytes] = {}
        try:
            self._family = generic.family(self._netlink, _FAMILY)
        except TemporaryError:
            self._netlink.close()
            raise

    def read(self) -> DeviceState:
        state = DeviceState()
        parsed: Parsed[bytes] = {}
        for message in self._netlink.dump(self._family, generic.body(_GET_DEVICE, self._name)):
            start = message.start + generic.HEADER
            parsed |= parse_device(state, message.data, start, message.end, self._parsed)
        self._parsed = parsed
        return state

    def configure(self, private_key: PrivateKey | None, listen_port: int | None) -> None:
        parts = [self._name]
        if private_key is not None:
            parts.append(attribute(_DEVICE_PRIVATE_KEY, private_key.reveal()))
        if listen_port is not None:
            parts.append(attribute(_DEVICE_LISTEN_PORT, U16.pack(listen_port)))
        self._set(b"".join(parts))

    def change(self, changes: Sequence[PeerChange]) -> list[str]:
        return one_by_one(changes, CHUNK, self._send)

    def _send(self, changes: Sequence[PeerChange]) -> None:
        try:
            messages = list(render(changes))
        except ProtocolError as e:
            raise DeviceRefused(str(e)) from e
        for peers in messages:
            self._set(self._name + nested(_DEVICE_PEERS, *peers))

    def _set(self, attributes: bytes) -> None:
        (error,) = self._netlink.change([Request(self._family, 0, generic.body(_SET_DEVICE, attributes))])
        if error is None:
            return
        if error.errno == errno.ENODEV:
            raise error  # there is nobody to refuse anything
        raise DeviceRefused(str(error), error.errno) from error

    def close(self) -> None:
        self._netlink.close()


def render(changes: Sequence[PeerChange]) -> Iterator[list[bytes]]:
    """Changes as lists of peers, one list for a message; all in one unless a peer has very many addresses."""
    message: list[bytes] = []
    for change in changes:
        first, rest = change.allowed_ips[:CHUNK], change.allowed_ips[CHUNK:]
        message.append(_peer(change._replace(allowed_ips=first)))
        while rest:
            yield message
            first, rest = rest[:CHUNK], rest[CHUNK:]
            message = [_peer(PeerChange(change.public_key, allowed_ips=first))]
    yield message


def _peer(change: PeerChange) -> bytes:
    parts = [attribute(_PEER_PUBLIC_KEY, base64.b64decode(change.public_key))]
    flags = (_REMOVE_ME if change.remove else 0) | (_REPLACE_ALLOWEDIPS if change.replace else 0)
    if flags:
        parts.append(u32(_PEER_FLAGS, flags))
    if change.preshared_key is not None:
        parts.append(attribute(_PEER_PRESHARED_KEY, base64.b64decode(change.preshared_key.value)))
    if change.endpoint is not None:
        ip, port = change.endpoint
        family, raw = pack_ip(ip)
        sockaddr = _SOCKADDR_IN if family == socket.AF_INET else _SOCKADDR_IN6
        parts.append(attribute(_PEER_ENDPOINT, sockaddr.pack(family, port.to_bytes(2, "big"), raw)))
    if change.keepalive is not None:
        parts.append(attribute(_PEER_KEEPALIVE, U16.pack(change.keepalive)))
    if change.allowed_ips:
        parts.append(nested(_PEER_ALLOWEDIPS, *map(_allowed_ip, change.allowed_ips)))
    return nested(0, *parts)


def _allowed_ip(network: str) -> bytes:
    ip, bits = parse_interface(network)
    family, raw = pack_ip(str(ip))
    return nested(
        0,
        attribute(_ALLOWEDIP_FAMILY, U16.pack(family)),
        attribute(_ALLOWEDIP_IPADDR, raw),
        attribute(_ALLOWEDIP_CIDR_MASK, bytes([bits])),
    )


def parse_device(
    state: DeviceState, data: bytes, start: int, end: int, before: Parsed[bytes]
) -> Parsed[bytes]:
    """Take one message of a listing into ``state``; its peers, for the next listing's ``before``.

    A peer may be continued in the next message.
    """
    found = parse(data, start, end)
    key = found.get(_DEVICE_PRIVATE_KEY, _NO_KEY)
    if key != _NO_KEY:
        state.private_key = PrivateKey(key)
    if _DEVICE_LISTEN_PORT in found:
        (state.listen_port,) = U16.unpack(found[_DEVICE_LISTEN_PORT])
    peers = found.get(_DEVICE_PEERS, b"")
    parsed: Parsed[bytes] = {}
    for _, peer_start, peer_end in walk(peers, 0, len(peers)):
        raw = peers[peer_start:peer_end]
        parsed[raw] = public_key, peer = before.get(raw) or _parse_peer(raw)
        if (earlier := state.peers.get(public_key)) is not None:
            peer = earlier._replace(allowed_ips=earlier.allowed_ips | peer.allowed_ips)
        state.peers[public_key] = peer
    return parsed


def _parse_peer(raw: bytes) -> tuple[str, PeerState]:
    """Public key and state; of a peer that is continued, with a part of its networks."""
    values = parse(raw, 0, len(raw))
    psk = values.get(_PEER_PRESHARED_KEY, _NO_KEY)
    return base64.b64encode(values[_PEER_PUBLIC_KEY]).decode(), PeerState(
        allowed_ips=frozenset(_networks(values.get(_PEER_ALLOWEDIPS, b""))),
        endpoint=_endpoint(values[_PEER_ENDPOINT]) if _PEER_ENDPOINT in values else NO_ENDPOINT,
        keepalive=U16.unpack(values[_PEER_KEEPALIVE])[0] if _PEER_KEEPALIVE in values else 0,
        preshared_key=None if psk == _NO_KEY else PresharedKey(base64.b64encode(psk).decode()),
        last_handshake=_SECONDS.unpack_from(values.get(_PEER_LAST_HANDSHAKE, bytes(16)))[0],
        received_bytes=U64.unpack(values.get(_PEER_RX_BYTES, bytes(8)))[0],
        sent_bytes=U64.unpack(values.get(_PEER_TX_BYTES, bytes(8)))[0],
    )


def _endpoint(sockaddr: bytes) -> tuple[str, int]:
    (family,) = U16.unpack_from(sockaddr)
    form = _SOCKADDR_IN if family == socket.AF_INET else _SOCKADDR_IN6
    _, port, raw = form.unpack_from(sockaddr)
    return ip_text(raw), int.from_bytes(port, "big")


def _networks(data: bytes) -> Iterator[str]:
    for _, start, end in walk(data, 0, len(data)):
        values = parse(data, start, end)
        if _ALLOWEDIP_IPADDR in values:
            yield f"{ip_text(values[_ALLOWEDIP_IPADDR])}/{values[_ALLOWEDIP_CIDR_MASK][0]}"
