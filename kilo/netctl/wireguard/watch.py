"""Tells the bus of peers' endpoints, networks, handshakes and bytes, as often as somebody needs them."""

from __future__ import annotations

from collections.abc import Mapping

from kilo.bus import Publisher
from kilo.model.host import WireGuardPeerState
from kilo.netctl.wireguard.device import PeerState

COUNTS_PERIOD = 30.0
"""Seconds between updates of byte counts alone: they change all the time, and nobody acts on them."""
TIMES_PERIOD = 4.5
"""Seconds between updates of handshakes alone: of a thousand peers some make one every second."""


class PeerStates:
    """The topic of the peers' states."""

    def __init__(self, publisher: Publisher[WireGuardPeerState]) -> None:
        self._publisher = publisher
        self._counted = self._timed = float("-inf")
        self._last: dict[str, PeerState] = {}

    def __len__(self) -> int:
        """How many peers have been told of."""
        return len(self._last)

    def publish(self, peers: Mapping[str, PeerState], now: float) -> None:
        """``peers`` by public key, as the device has them; ``now`` in monotonic seconds."""
        publisher = self._publisher
        counts = now - self._counted >= COUNTS_PERIOD
        times = now - self._timed >= TIMES_PERIOD
        if counts:
            self._counted = now
        if times:
            self._timed = now
        last = self._last
        for key in last.keys() - peers.keys():
            del last[key]
            publisher.remove(key)
        for key, peer in peers.items():
            old = last.get(key)
            if old is peer or (old is not None and not _is_news(old, peer, times, counts)):
                continue
            last[key] = peer
            publisher.put(key, state_of(key, peer))
        publisher.flush()


def _is_news(old: PeerState, peer: PeerState, times: bool, counts: bool) -> bool:
    """Whether ``peer``, which was told as ``old``, is told again. A first handshake is at once."""
    if old.endpoint != peer.endpoint or old.allowed_ips != peer.allowed_ips:
        return True
    if old.last_handshake != peer.last_handshake and (times or not old.last_handshake):
        return True
    return counts and old != peer


def state_of(public_key: str, peer: PeerState) -> WireGuardPeerState:
    """What is told of a peer."""
    return WireGuardPeerState(
        public_key=public_key,
        endpoint_ip=peer.endpoint[0],
        endpoint_port=peer.endpoint[1],
        last_handshake=peer.last_handshake,
        received_bytes=peer.received_bytes,
        sent_bytes=peer.sent_bytes,
        allowed_ips=tuple(sorted(peer.allowed_ips)),
    )
