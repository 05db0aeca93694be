"""Rule 7 for routes: what sets the tunnel up is not moved into it before it has shown that it works. Pure.

A route over WireGuard is taken by the peer that has its destination among its allowed IPs. It is
*delicate* if it covers an address that is needed underneath: where peers' packets go, by the plan
and in fact, or the API server's. Then it is set only once its peer has answered a handshake lately,
and withdrawn when the peer answers no more; over the peer's own endpoint it is never set. While the
API is away, the routes over its addresses are left out for a while, to see whether that helps.

A route that no peer carries, or whose peer the device does not have, is withheld: it would be a black hole.

Times are arguments: ``now`` in monotonic seconds, ``wall`` in Unix seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from kilo.model.net import bounds, canonical_network, parse_ip, text_of
from kilo.model.node import ApiServer
from kilo.model.plan import PlanItem, PlannedPeer, Route
from kilo.netctl.cover import Cover
from kilo.netctl.detour import Detour
from kilo.netctl.wireguard.device import PeerState

FRESH = 195.0
"""s; a session that is in use makes a handshake every 120 s, and ends after 180 s without one."""
REFRESH = 100.0
"""s; a handshake older than that is asked to be made anew."""
PATIENCE = 6.0
"""s for an answer. Until then a route that is there stays, and one that is not is not set."""
ASK_EVERY, ASK_AGAIN, ASK_FRESH = 1.0, 5.0, 20.0
"""s between two probes of a peer: within its patience, after that, and while it answers."""
API = "the API server"


class Verdict(NamedTuple):
    """Why a route must not be set now. ``keep``: one that is there may stay meanwhile.

    ``deliberate``: the plan counts as applied without it.
    """

    reason: str
    keep: bool
    deliberate: bool = True


class _Trial(NamedTuple):
    """What is known of a peer with delicate routes: the last handshake (Unix s, 0 for none), when
    it began to be without a fresh one (None while it has one), and when it was last asked."""

    handshake: int = 0
    failing_since: float | None = None
    asked: float = float("-inf")


class Guard:
    """``update``, ``observe`` and ``tick`` tell whether an answer of ``verdict`` may have changed."""

    def __init__(self) -> None:
        self.detour = Detour()
        self._peers: dict[str, PlannedPeer] = {}
        self._seen: dict[str, str] = {}
        self._owners: dict[str, set[str]] = {}
        self._cover = Cover()
        self._trials: dict[str, _Trial] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._lacking: Mapping[str, str] = {}
        self._indirect: set[str] = set()
        """Networks with a route that no peer has as it is: a wider allowed IP may carry them."""

    @property
    def watching(self) -> bool:
        """Whether there is anything that time can change."""
        return bool(self._trials or self._verdicts or self.detour.active)

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str], now: float) -> bool:
        """The plan changed."""
        touched: set[str] = set()
        for key in removals:
            touched |= self._forget(key)
        for key, item in upserts.items():
            if isinstance(item, PlannedPeer):
                touched |= self._set_peer(key, item)
            elif isinstance(item, Route) and item.device == "wireguard":
                self._cover.add_network(key, item.dst)
                touched.add(item.dst)
            elif isinstance(item, Route):
                touched |= self._drop_route(key)
            elif isinstance(item, ApiServer):
                touched |= self._need(API, item.addresses)
                self.detour.heard(item.reachable, now)
        return self._judge(touched, now)

    def lacks(self, networks: Mapping[str, str], now: float) -> bool:
        """The device does not have these allowed IPs of the plan; each with the plan key of its peer."""
        if networks == self._lacking:
            return False
        touched = networks.keys() ^ self._lacking.keys()
        self._lacking = networks
        return self._judge(touched | self._indirect, now)

    def observe(self, peers: Mapping[str, PeerState], now: float, wall: float) -> bool:
        """The device's peers, by plan key: where packets go in fact, and who has answered."""
        touched: set[str] = set()
        seen = {key: peer.endpoint[0] for key, peer in peers.items()}
        if seen != self._seen:
            moved = [key for key in seen.keys() | self._seen.keys() if seen.get(key) != self._seen.get(key)]
            self._seen = seen
            for key in moved:
                touched |= self._need_endpoints(key)
        changed = self._judge(touched, now)
        for key, trial in self._trials.items():
            handshake = peers[key].last_handshake if key in peers else 0
            fresh = handshake > 0 and wall - handshake <= FRESH
            since = None if fresh else now if trial.failing_since is None else trial.failing_since
            self._trials[key] = trial._replace(handshake=handshake, failing_since=since)
        return self._rejudge(now) or changed

    def tick(self, now: float) -> bool:
        """Time has passed; call it every second while ``watching``."""
        moved = self.detour.tick(now)
        return self._rejudge(now) or moved

    def due(self, now: float, wall: float) -> list[PlannedPeer]:
        """The peers to be asked for a handshake now; they count as asked."""
        found = []
        for key, trial in self._trials.items():
            if trial.failing_since is None:
                wait = ASK_FRESH if wall - trial.handshake > REFRESH else float("inf")
            else:
                wait = ASK_EVERY if now - trial.failing_since < PATIENCE else ASK_AGAIN
            if key in self._peers and now - trial.asked >= wait:
                self._trials[key] = trial._replace(asked=now)
                found.append(self._peers[key])
        return found

    def verdict(self, route: Route) -> Verdict | None:
        """Why ``route`` must not be set now; None if it may."""
        return self._verdicts.get(route.dst) if route.device == "wireguard" else None

    def name_of(self, route: Route) -> str:
        """The node or Peer to which ``route`` leads; "" if that is not known."""
        if route.device != "wireguard":
            return ""
        peer = self._peers.get(self._carrier(route.dst)[0])
        return peer.name if peer else ""

    # What is needed, and by whom it is covered.

    def _forget(self, key: str) -> set[str]:
        touched = self._drop_route(key)
        if (peer := self._peers.pop(key, None)) is not None:
            touched |= self._own(key, peer.allowed_ips, ())
            touched |= self._need_endpoints(key)
        if key == ApiServer.KEY:
            touched |= self._need(API, ())
        return touched

    def _drop_route(self, key: str) -> set[str]:
        network = self._cover.network_of(key)
        return self._cover.drop_network(key) | ({network} if network else set())

    def _set_peer(self, key: str, peer: PlannedPeer) -> set[str]:
        old = self._peers.get(key)
        self._peers[key] = peer
        touched: set[str] = set()
        if old is None or old.allowed_ips != peer.allowed_ips:
            touched |= self._own(key, old.allowed_ips if old else (), peer.allowed_ips)
        if old is None or old.endpoint_ip != peer.endpoint_ip:
            touched |= self._need_endpoints(key)
        return touched

    def _own(self, key: str, old: Iterable[str], new: Iterable[str]) -> set[str]:
        """``key`` has the ``new`` networks now instead of the ``old``. Those that changed hands."""
        before, after = set(map(canonical_network, old)), set(map(canonical_network, new))
        for network in before - after:
            self._owners[network].discard(key)
            if not self._owners[network]:
                del self._owners[network]
        for network in after - before:
            self._owners.setdefault(network, set()).add(key)
        return before ^ after | self._indirect

    def _need_endpoints(self, key: str) -> set[str]:
        peer = self._peers.get(key)
        planned = peer.endpoint_ip if peer else ""
        return self._need(key, [ip for ip in (planned, self._seen.get(key, "")) if ip])

    def _need(self, owner: str, addresses: Iterable[str]) -> set[str]:
        return self._cover.set_addresses(owner, {str(parse_ip(ip)) for ip in addresses})

    # What follows.

    def _judge(self, networks: Collection[str], now: float) -> bool:
        """Judge the routes to ``networks``; whether an answer changed."""
        changed = False
        for network in networks:
            verdict = self._verdict(network, now)
            if verdict != self._verdicts.get(network):
                changed = True
            if verdict is None:
                self._verdicts.pop(network, None)
            else:
                self._verdicts[network] = verdict
        if networks:
            self._keep_trials()
        return changed

    def _rejudge(self, now: float) -> bool:
        return self._judge(list(self._cover.delicate), now)

    def _keep_trials(self) -> None:
        """Trials are of those that have delicate routes, alone."""
        tried = {key for network in self._cover.delicate for key in self._owners.get(network, ())}
        for key in self._trials.keys() - tried:
            del self._trials[key]

    def _verdict(self, network: str, now: float) -> Verdict | None:
        if not self._cover.has(network):
            self._indirect.discard(network)
            return None
        key, allowed_ip = self._carrier(network)
        if allowed_ip == network:
            self._indirect.discard(network)
        else:
            self._indirect.add(network)
        if not key:
            return Verdict("no peer has it among its allowed IPs", keep=False, deliberate=False)
        if allowed_ip in self._lacking:
            # One text for all: a device may refuse every peer, and each is named by its own failure.
            return Verdict("the device does not have the peer that carries it", keep=False, deliberate=False)
        covered = self._cover.delicate.get(network)
        if not covered:
            return None
        if key in covered:
            text = f"it would carry the way to its own peer {self._name(key)}, whose endpoint lies in it"
            return Verdict(text, keep=False)
        trial = self._trials.get(key)
        if trial is None:
            trial = self._trials[key] = _Trial(failing_since=now)
        if trial.failing_since is not None:
            keep = now - trial.failing_since < PATIENCE
            waits = "has not answered a handshake yet" if keep else "does not answer"
            return Verdict(f"it covers the way to {self._text(covered)}, and {self._name(key)} {waits}", keep)
        if API in covered and self.detour.avoiding:
            return Verdict(f"it covers the way to {API}, which {self.detour.why}", keep=False)
        return None

    def _carrier(self, network: str) -> tuple[str, str]:
        """The plan key of the peer that carries ``network``, and the allowed IP by which it does; or ""."""
        if owners := self._owners.get(network):
            return min(owners), network
        version, first, last = bounds(network)
        bits = 32 if version == 4 else 128
        for length in range(bits - (last - first).bit_length() - 1, -1, -1):
            host = bits - length
            wider = f"{text_of(version, first >> host << host)}/{length}"
            if owners := self._owners.get(wider):
                return min(owners), wider
        return "", ""

    def _name(self, key: str) -> str:
        peer = self._peers.get(key)
        public_key = key.removeprefix("peer/")
        return f"{peer.name} (peer {public_key})" if peer and peer.name else f"the peer {public_key}"

    def _text(self, owners: Collection[str]) -> str:
        names = [API] if API in owners else []
        names += [self._name(key) for key in sorted(owners) if key != API]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
