"""What to change of a WireGuard device's peers, and what to leave alone. Pure.

A peer that is as planned is not touched, so that its session and its endpoint survive. An endpoint
that WireGuard learnt from a peer's own packets is newer than any plan while the session lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kilo.model.keys import ZERO, PresharedKey
from kilo.model.net import canonical_network
from kilo.model.plan import PlannedPeer
from kilo.netctl.wireguard.device import PeerChange, PeerState

SESSION = 180
"""Seconds after a handshake in which its session can be in use: WireGuard's REJECT_AFTER_TIME."""


class Wanted(NamedTuple):
    """A peer of the plan, and those of its allowed IPs that are its own (see Claims)."""

    peer: PlannedPeer
    allowed_ips: frozenset[str]


class Claims:
    """Which peer has an allowed IP that several want: a device gives each to one.

    The peer with the lowest key has it, so that nobody fights and every start decides alike.
    """

    def __init__(self) -> None:
        self._wants: dict[str, tuple[str, ...]] = {}
        self._claimants: dict[str, set[str]] = {}
        self._shared: set[str] = set()

    def set(self, key: str, allowed_ips: Iterable[str]) -> set[str]:
        """``key`` wants these, in any form of a network. Returns the other keys whose share may differ."""
        wants = tuple(dict.fromkeys(map(canonical_network, allowed_ips)))
        moved = set(self._wants.get(key, ())) ^ set(wants)
        for network in moved:
            claimants = self._claimants.setdefault(network, set())
            claimants ^= {key}
            if not claimants:
                del self._claimants[network]
            if len(claimants) > 1:
                self._shared.add(network)
            else:
                self._shared.discard(network)
        if wants:
            self._wants[key] = wants
        else:
            self._wants.pop(key, None)
        return {other for network in moved for other in self._claimants.get(network, ())} - {key}

    def share(self, key: str) -> frozenset[str]:
        """The allowed IPs that ``key`` gets."""
        return frozenset(n for n in self._wants.get(key, ()) if min(self._claimants[n]) == key)

    def wanted(self, network: str) -> bool:
        """Whether anybody wants ``network``, in its usual form."""
        return network in self._claimants

    def disputes(self) -> Iterator[tuple[str, str, str]]:
        """An allowed IP that several want, one that does not get it, and the one that does."""
        for network in sorted(self._shared):
            owner, *losers = sorted(self._claimants[network])
            for loser in losers:
                yield network, loser, owner


def endpoint_change(
    wanted: PlannedPeer, actual: PeerState | None, now: float, news: bool
) -> tuple[str, int] | None:
    """The endpoint to set, or None to leave it. ``now`` in Unix s; ``news``: the plan's is a new one.

    While a session lives its endpoint works, so only news moves it; and not even that where the
    plan itself says that WireGuard knows better (``roams``).
    """
    planned = (wanted.endpoint_ip, wanted.endpoint_port)
    if not wanted.endpoint_ip or (actual and actual.endpoint == planned):
        return None
    if actual and actual.last_handshake and now - actual.last_handshake < SESSION:
        return planned if news and not wanted.roams else None
    return planned


def is_as_wanted(wanted: Wanted, actual: PeerState, now: float, news: bool) -> bool:
    """Whether the peer needs no change."""
    peer = wanted.peer
    return (
        wanted.allowed_ips == actual.allowed_ips
        and peer.keepalive == actual.keepalive
        and peer.preshared_key == actual.preshared_key
        and endpoint_change(peer, actual, now, news) is None
    )


def addition(wanted: Wanted, actual: PeerState | None, now: float, news: bool) -> PeerChange | None:
    """What to add or set, taking nothing away but from other peers; None if nothing."""
    peer = wanted.peer
    old = actual or PeerState(frozenset())
    missing = wanted.allowed_ips - old.allowed_ips
    change = PeerChange(
        peer.public_key,
        allowed_ips=tuple(sorted(missing)),
        endpoint=endpoint_change(peer, actual, now, news),
        keepalive=peer.keepalive if peer.keepalive != old.keepalive else None,
        preshared_key=_key_change(peer.preshared_key, old.preshared_key),
    )
    return None if actual and change == PeerChange(peer.public_key) else change


def _key_change(wanted: PresharedKey | None, actual: PresharedKey | None) -> PresharedKey | None:
    if wanted == actual:
        return None
    return wanted or PresharedKey(ZERO)


def reduction(wanted: Wanted, actual: PeerState) -> PeerChange | None:
    """How to take from a peer the allowed IPs that it should not have; None if there are none."""
    if actual.allowed_ips <= wanted.allowed_ips:
        return None
    kept = tuple(sorted(wanted.allowed_ips & actual.allowed_ips))
    return PeerChange(wanted.peer.public_key, replace=True, allowed_ips=kept)


def after(change: PeerChange, actual: PeerState | None) -> PeerState | None:
    """What a peer is once ``change`` has been applied to it."""
    if change.remove:
        return None
    old = actual or PeerState(frozenset())
    key = old.preshared_key if change.preshared_key is None else change.preshared_key
    return old._replace(
        allowed_ips=frozenset(change.allowed_ips) | (frozenset() if change.replace else old.allowed_ips),
        endpoint=old.endpoint if change.endpoint is None else change.endpoint,
        keepalive=old.keepalive if change.keepalive is None else change.keepalive,
        preshared_key=None if key is not None and key.value == ZERO else key,
    )
