"""The reconciler of peers: adds and moves first, takes away afterwards.

An allowed IP that moves to another peer is added there, which takes it from the old one in the
same step of the device. Peers go in ``prune``, after the routes that led to them, and so do allowed
IPs; but what nobody in the plan wants or has a route to may go with the next change of its peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from kilo.model.plan import PlanItem, PlannedPeer, Route, route_key
from kilo.netctl.fights import Fights
from kilo.netctl.reconcile import Backoff, Delta, Outcome, Removed
from kilo.netctl.wireguard.device import Device, PeerChange, PeerState
from kilo.netctl.wireguard.difference import Claims, Wanted, addition, after, is_as_wanted, reduction

CHUNK = 250
"""Peers changed in one call: some 50 ms of wireguard-go's work."""

Actual = PeerState | Wanted
DeviceSource = Callable[[], Device | None]


class Peers:
    """``device`` gives the device, or None while there is none. ``clock`` in Unix seconds, to tell
    how old a handshake is; ``timer`` in monotonic ones."""

    name = "peers"

    def __init__(
        self,
        device: DeviceSource,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.more = False
        self.fights = Fights()
        self._device = device
        self._clock = clock
        self._timer = timer
        self._claims = Claims()
        self._news: set[str] = set()
        self._roamed: set[str] = set()
        self._disputed: set[str] = set()
        self._backoff: Backoff[str] = Backoff()
        self._peers: dict[str, PlannedPeer] = {}
        self._routed: set[str] = set()
        """The keys of the plan's routes: packets go there as long as it has them."""
        self.delta: Delta[str, Actual] = Delta(self._same)

    @property
    def actual(self) -> dict[str, PeerState]:
        """The device's peers as last read, and as changed since, by plan key."""
        return self.delta.actual  # type: ignore[return-value]

    def _same(self, wanted: Actual, actual: Actual) -> bool:
        """Whether a peer needs no change. Those whose endpoint is left alone are looked at again later."""
        assert isinstance(wanted, Wanted) and isinstance(actual, PeerState)  # noqa: S101 - see Delta
        peer, key = wanted.peer, wanted.peer.key
        if peer.endpoint_ip and actual.endpoint != (peer.endpoint_ip, peer.endpoint_port):
            self._roamed.add(key)
        else:
            self._roamed.discard(key)
        return is_as_wanted(wanted, actual, self._clock(), key in self._news)

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        touched: set[str] = set()
        for key in removals:
            self._routed.discard(key)
            if self._peers.pop(key, None) is not None:
                touched |= self._claims.set(key, ()) | {key}
                self._news.discard(key)
        for key, item in upserts.items():
            if isinstance(item, PlannedPeer):
                self._note_news(key, item)
                self._peers[key] = item
                touched |= self._claims.set(key, item.allowed_ips) | {key}
            elif isinstance(item, Route):
                self._routed.add(key)
        for key in touched:
            if key in self._peers:
                self.delta.want(key, Wanted(self._peers[key], self._claims.share(key)))
            else:
                self.delta.forget(key)
                self._roamed.discard(key)

    def _note_news(self, key: str, item: PlannedPeer) -> None:
        """An endpoint is news if the plan had another one before; at a start nothing is."""
        old = self._peers.get(key)
        if old and (old.endpoint_ip, old.endpoint_port) != (item.endpoint_ip, item.endpoint_port):
            self._news.add(key)

    def load(self) -> None:
        device = self._device()
        self.loaded(device.read().peers if device else {})

    def loaded(self, peers: Mapping[str, PeerState]) -> None:
        """The device has these peers, by public key."""
        self.delta.loaded({f"peer/{public_key}": peer for public_key, peer in peers.items()})
        for key in list(self._roamed):
            self.delta.check(key)

    def apply(self) -> list[Outcome]:
        now, unix = self._timer(), self._clock()
        changes: list[tuple[str, PeerChange]] = []
        for key, wanted, actual in self.delta.changes():
            if isinstance(wanted, Wanted) and self._due(key, now):
                state = actual if isinstance(actual, PeerState) else None
                change = addition(wanted, state, unix, key in self._news)
                if change is not None:
                    changes.append((key, self._whole(change, wanted, state)))
                    if len(changes) == CHUNK:
                        break
        self.more = len(changes) == CHUNK
        return self._run(changes, now) + self._settled() + self._disputes()

    def _whole(self, change: PeerChange, wanted: Wanted, actual: PeerState | None) -> PeerChange:
        """``change``, with what the peer is to lose as well if no packet can go there any more."""
        surplus = actual.allowed_ips - wanted.allowed_ips if actual else frozenset()
        if not surplus or any(map(self._is_needed, surplus)):
            return change
        return change._replace(replace=True, allowed_ips=tuple(sorted(wanted.allowed_ips)))

    def lacking(self) -> dict[str, str]:
        """Allowed IPs that the plan wants and the device does not have, with the plan key of the peer."""
        found = {}
        for key, wanted, actual in self.delta.changes():
            if isinstance(wanted, Wanted):
                there = actual.allowed_ips if actual else frozenset()
                found.update(dict.fromkeys(wanted.allowed_ips - there, key))
        return found

    def _is_needed(self, network: str) -> bool:
        """Whether the plan has a peer for ``network``, or a route to it."""
        return self._claims.wanted(network) or route_key(network) in self._routed

    def prune(self) -> list[Outcome]:
        now = self._timer()
        changes: list[tuple[str, PeerChange]] = []
        for key, wanted, actual in self.delta.changes():
            if isinstance(wanted, Wanted) and isinstance(actual, PeerState) and self._due(key, now):
                change = reduction(wanted, actual)
                if change is not None:
                    changes.append((key, change))
        for key, _ in self.delta.removals():
            if self._due(key, now):
                changes.append((key, PeerChange(key.removeprefix("peer/"), remove=True)))
        self.more = len(changes) > CHUNK
        return self._run(changes[:CHUNK], now) + self._settled()

    def clean_up(self) -> list[Outcome]:
        """Nothing: peers belong to the device, and stay or go with it."""
        return []

    def _due(self, key: str, now: float) -> bool:
        """Whether ``key``, which is not as it should be, may be changed now."""
        fought = key in self.delta.drifted and not self.fights.may_repair(key, now)
        return not fought and self._backoff.due(key, now)

    def _run(self, changes: Sequence[tuple[str, PeerChange]], now: float) -> list[Outcome]:
        device = self._device()
        if device is None or not changes:
            self.more = self.more and device is not None
            return []
        owners = self._owners(changes)
        outcomes = []
        for (key, change), error in zip(changes, device.change([c for _, c in changes]), strict=True):
            if error:
                self._backoff.failed(key, now)
                outcomes.append(Outcome(key, f"{self._named(key)}: {error}"))
                continue
            repair = key in self.delta.drifted
            if repair:
                self.fights.repaired(key, now)
            removed = (
                Removed("WireGuard peer", key.removeprefix("peer/")) if change.remove and repair else None
            )
            outcomes.append(Outcome(key, repair=repair, removed=removed))
            self._backoff.worked(key)
            self._news.discard(key)
            for network in change.allowed_ips:
                self._taken(network, owners.get(network, key), key)
            self.delta.done(key, after(change, self.actual.get(key)))
        return outcomes

    def _named(self, key: str) -> str:
        peer = self._peers.get(key)
        return f"{key}, {peer.name}" if peer and peer.name else key

    def _owners(self, changes: Sequence[tuple[str, PeerChange]]) -> dict[str, str]:
        """Who has the allowed IPs that ``changes`` add."""
        moving = {network for _, change in changes for network in change.allowed_ips}
        if not moving:
            return {}
        return {n: key for key, peer in self.actual.items() for n in peer.allowed_ips if n in moving}

    def _taken(self, network: str, owner: str, key: str) -> None:
        """``key`` has got ``network``, so that its ``owner`` has it no more."""
        state = self.actual.get(owner)
        if owner != key and state is not None:
            self.delta.done(owner, state._replace(allowed_ips=state.allowed_ips - {network}))

    def _settled(self) -> list[Outcome]:
        """Peers that had failed and need nothing any more."""
        settled = [key for key in self._backoff.failing() if key not in self.delta.pending]
        for key in settled:
            self._backoff.worked(key)
        return [Outcome(key) for key in settled]

    def _disputes(self) -> list[Outcome]:
        """Allowed IPs that several peers want, by the peer that does not get them."""
        found = {
            f"{loser}/{network}": (
                f"{self._named(loser)}: allowed IP {network} is already that of {self._named(owner)}"
            )
            for network, loser, owner in self._claims.disputes()
        }
        outcomes = [Outcome(key) for key in self._disputed - found.keys()]
        self._disputed = set(found)
        return outcomes + [Outcome(key, error, waits=True, deliberate=True) for key, error in found.items()]
