"""A WireGuard device that a program such as wireguard-go serves, over its UAPI socket.

The protocol is text: ``set=1`` or ``get=1``, lines ``key=value``, an empty line; the answer ends
with ``errno=``. A ``set`` is carried out line by line up to the first that is refused.
The answer to ``get`` holds the private key: it is parsed here and goes no further.
"""

from __future__ import annotations

import base64
import errno
import os
import socket
from collections.abc import Sequence
from functools import lru_cache

from kilo.errors import ProtocolError, TemporaryError
from kilo.model.keys import PresharedKey
from kilo.model.net import canonical_network, parse_ip
from kilo.netctl.key import PrivateKey
from kilo.netctl.wireguard.device import (
    NO_ENDPOINT,
    DeviceRefused,
    DeviceState,
    Parsed,
    PeerChange,
    PeerState,
    one_by_one,
)

DIRECTORY = "/run/wireguard"
CHUNK = 2000
"""Allowed IPs, with 4 for a peer, that go into one message."""
TIMEOUT = 1.0
_READ = 1 << 18
_NO_KEY = "0" * 64


def socket_path(interface: str) -> str:
    """Where the program that serves ``interface`` listens."""
    return f"{DIRECTORY}/{interface}.sock"


def answers(interface: str) -> bool:
    """Whether a program serves ``interface``."""
    device = Userspace(interface)
    try:
        device.connect()
    except TemporaryError:
        return False
    device.close()
    return True


class _Closed(TemporaryError):
    """The connection was closed by the other side."""


class _Owed:
    """A question that was asked, and what has come of its answer."""

    def __init__(self, question: str) -> None:
        self.question = question
        self.parts: list[bytes] = []

    @property
    def complete(self) -> bool:
        return b"".join(self.parts[-2:])[-2:] == b"\n\n"


class Userspace:
    """The device ``interface``. Keeps one connection, and makes a new one when it breaks.

    A program that stands still costs TIMEOUT once: while its answer is owed, all that is asked fails
    at once, and the answer is looked for without waiting.
    """

    kind = "userspace"

    def __init__(self, interface: str) -> None:
        self._path = socket_path(interface)
        self._socket: socket.socket | None = None
        self._owed: _Owed | None = None
        self._parsed: Parsed[str] = {}

    def read(self) -> DeviceState:
        state, self._parsed = parse(self._ask("get=1\n\n"), self._parsed)
        return state

    def configure(self, private_key: PrivateKey | None, listen_port: int | None) -> None:
        lines = ["set=1"]
        if private_key is not None:
            lines.append(f"private_key={private_key.reveal().hex()}")
        if listen_port is not None:
            lines.append(f"listen_port={listen_port}")
        self._ask("\n".join(lines) + "\n\n")

    def change(self, changes: Sequence[PeerChange]) -> list[str]:
        return one_by_one(changes, CHUNK, self._send)

    def _send(self, changes: Sequence[PeerChange]) -> None:
        self._ask("set=1\n" + "".join(map(render, changes)) + "\n")

    def connect(self) -> socket.socket:
        """The connection. Raises TemporaryError if nobody serves the device."""
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            connection.settimeout(TIMEOUT)
            try:
                connection.connect(self._path)
            except OSError as e:
                connection.close()
                raise TemporaryError(f"nothing answers at {self._path}: {e.strerror or e}") from e
            self._socket = connection
        return self._socket

    def close(self) -> None:
        self._owed = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, question: str) -> str:
        """The answer without its last lines. A connection that was closed meanwhile is made anew once."""
        answer = self._late(question)
        if answer is None:
            fresh = self._socket is None
            try:
                answer = self._exchange(question)
            except _Closed:
                if fresh:
                    raise
                answer = self._exchange(question)
        body, _, number = answer.rpartition("errno=")
        if (code := int(number.strip() or "-1")) != 0:
            name = errno.errorcode.get(abs(code), str(code))
            raise DeviceRefused(f"{os.strerror(abs(code))} ({name})", abs(code))
        return body

    def _late(self, question: str) -> str | None:
        """The answer to an earlier ``question``, if it came late and the same is asked now."""
        if self._owed is None:
            return None
        asked = self._owed.question
        try:
            answer = self._await(patience=0)
        except _Closed:
            return None
        return answer if asked == question else None

    def _exchange(self, question: str) -> str:
        connection = self.connect()
        connection.settimeout(TIMEOUT)
        try:
            connection.sendall(question.encode())
        except OSError as e:
            raise self._broken(e) from e
        self._owed = _Owed(question)
        return self._await(TIMEOUT)

    def _await(self, patience: float) -> str:
        """The answer that is owed. Raises TemporaryError if it does not come: then it still is."""
        connection, owed = self.connect(), self._owed
        assert owed is not None  # noqa: S101 - callers have asked
        connection.settimeout(patience)
        try:
            while not owed.complete:
                part = connection.recv(_READ)
                if not part:
                    raise ConnectionResetError(errno.ECONNRESET, "connection closed")
                owed.parts.append(part)
        except (TimeoutError, BlockingIOError) as e:
            raise TemporaryError(f"the program that serves {self._path} does not answer") from e
        except OSError as e:
            raise self._broken(e) from e
        self._owed = None
        return b"".join(owed.parts).decode(errors="replace")

    def _broken(self, error: OSError) -> TemporaryError:
        """Close the connection; the error to raise."""
        self.close()
        kind = _Closed if isinstance(error, ConnectionError) else TemporaryError
        return kind(f"{self._path}: {error.strerror or error}")


def render(change: PeerChange) -> str:
    """The lines of one peer's change."""
    lines = [f"public_key={_hex(change.public_key)}"]
    if change.remove:
        lines.append("remove=true")
    if change.preshared_key is not None:
        lines.append(f"preshared_key={_hex(change.preshared_key.value)}")
    if change.endpoint is not None:
        ip, port = change.endpoint
        lines.append(f"endpoint=[{ip}]:{port}" if ":" in ip else f"endpoint={ip}:{port}")
    if change.keepalive is not None:
        lines.append(f"persistent_keepalive_interval={change.keepalive}")
    if change.replace:
        lines.append("replace_allowed_ips=true")
    lines += [f"allowed_ip={network}" for network in change.allowed_ips]
    return "\n".join(lines) + "\n"


def parse(answer: str, before: Parsed[str]) -> tuple[DeviceState, Parsed[str]]:
    """The state that an answer to ``get=1`` describes, and its peers for the next answer's ``before``.

    Raises TemporaryError if it makes no sense.
    """
    head, *peers = answer.split("public_key=")
    state = DeviceState()
    parsed: Parsed[str] = {}
    try:
        for line in head.splitlines():
            name, _, value = line.partition("=")
            if name == "private_key" and value != _NO_KEY:
                state.private_key = PrivateKey(bytes.fromhex(value))
            elif name == "listen_port":
                state.listen_port = int(value)
        for block in peers:
            parsed[block] = key, peer = before.get(block) or (_base64(block[:64]), _parse_peer(block[65:]))
            state.peers[key] = peer
    except (ValueError, ProtocolError) as e:
        raise TemporaryError(f"an answer of the WireGuard device makes no sense: {e}") from e
    return state, parsed


def _parse_peer(block: str) -> PeerState:
    networks = []
    values = {}
    for line in block.splitlines():
        name, _, value = line.partition("=")
        if name == "allowed_ip":
            networks.append(canonical_network(value))
        else:
            values[name] = value
    psk = values.get("preshared_key", _NO_KEY)
    return PeerState(
        allowed_ips=frozenset(networks),
        endpoint=_endpoint(values["endpoint"]) if "endpoint" in values else NO_ENDPOINT,
        keepalive=int(values.get("persistent_keepalive_interval", 0)),
        preshared_key=None if psk == _NO_KEY else PresharedKey(_base64(psk)),
        last_handshake=int(values.get("last_handshake_time_sec", 0)),
        received_bytes=int(values.get("rx_bytes", 0)),
        sent_bytes=int(values.get("tx_bytes", 0)),
    )


@lru_cache(1 << 14)
def _endpoint(text: str) -> tuple[str, int]:
    ip, _, port = text.rpartition(":")
    return str(parse_ip(ip.strip("[]").partition("%")[0])), int(port)


@lru_cache(1 << 14)
def _hex(key: str) -> str:
    return base64.b64decode(key).hex()


@lru_cache(1 << 14)
def _base64(key: str) -> str:
    if len(key) != 64 or not key.isalnum():
        raise ValueError("a key is not 64 hexadecimal digits")
    return base64.b64encode(bytes.fromhex(key)).decode()
