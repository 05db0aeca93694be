"""A WireGuard device as netctl sees it, whoever serves it: its state, and changes to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from kilo.errors import TemporaryError
from kilo.model.keys import PresharedKey
from kilo.netctl.key import PrivateKey

NO_ENDPOINT = ("", 0)

Raw = TypeVar("Raw", str, bytes)


class DeviceRefused(TemporaryError):
    """The device answered, and refused what it was told. Without an answer there is no such error."""

    def __init__(self, text: str, number: int = 0) -> None:
        self.errno = number
        super().__init__(text)


class PeerState(NamedTuple):
    """A peer as the device has it. ``allowed_ips`` are Networks; ``last_handshake`` Unix s, 0 for never.

    ``endpoint`` is address and port, NO_ENDPOINT for none.
    """

    allowed_ips: frozenset[str]
    endpoint: tuple[str, int] = NO_ENDPOINT
    keepalive: int = 0
    preshared_key: PresharedKey | None = None
    last_handshake: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


Parsed = dict[Raw, tuple[str, PeerState]]
"""Peers of an answer, public key and state, by what they were parsed from: the next says mostly the same."""


@dataclass
class DeviceState:
    """A device: its private key (None if it has none), UDP port (0 for none yet), peers by public key."""

    private_key: PrivateKey | None = None
    listen_port: int = 0
    peers: dict[str, PeerState] = field(default_factory=dict)


class PeerChange(NamedTuple):
    """What to change of one peer; None leaves a thing as it is, and so does an empty ``allowed_ips``.

    ``allowed_ips`` are added, and taken from whoever has them; with ``replace`` the peer is left
    with these alone. ``preshared_key`` of 32 zero bytes removes the key.
    """

    public_key: str
    remove: bool = False
    replace: bool = False
    allowed_ips: tuple[str, ...] = ()
    endpoint: tuple[str, int] | None = None
    keepalive: int | None = None
    preshared_key: PresharedKey | None = None


class Device(Protocol):
    """A device that exists. Every method raises TemporaryError if it cannot be reached."""

    kind: str
    """``kernel`` or ``userspace``."""

    def read(self) -> DeviceState:
        """The whole of its state."""

    def configure(self, private_key: PrivateKey | None, listen_port: int | None) -> None:
        """Set what is not None."""

    def change(self, changes: Sequence[PeerChange]) -> list[str]:
        """Apply changes in this order; for each "", or why it was refused.

        Raises TemporaryError where no answer comes: then any of them may have been applied.
        """

    def close(self) -> None:
        """Let go of the device, which stays as it is."""


def one_by_one(
    changes: Sequence[PeerChange], chunk: int, send: Callable[[Sequence[PeerChange]], None]
) -> list[str]:
    """Send ``changes`` some at a time; where some are refused, each alone, to find out which.

    ``chunk``: how many allowed IPs, with 4 for a peer, go into one message. ``send`` raises
    DeviceRefused; any other error of it ends all of this. Sending a change twice does no harm.
    """
    errors: list[str] = []
    for part in _parts(changes, chunk):
        try:
            send(part)
            errors += [""] * len(part)
        except DeviceRefused as e:
            if len(part) == 1:
                errors.append(str(e))
                continue
            for change in part:
                try:
                    send([change])
                    errors.append("")
                except DeviceRefused as own:
                    errors.append(str(own))
    return errors


def _parts(changes: Sequence[PeerChange], chunk: int) -> list[list[PeerChange]]:
    parts: list[list[PeerChange]] = []
    room = 0
    for change in changes:
        need = 4 + len(change.allowed_ips)
        if need > room or not parts:
            parts.append([])
            room = chunk
        parts[-1].append(change)
        room -= need
    return parts
