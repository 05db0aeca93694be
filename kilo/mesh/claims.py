"""What two claim at once: who gets it here, and how a person is told. Pure; for the planner and kg plan.

In routes and in WireGuard alike the longest prefix wins, so a network inside another is no conflict in
itself. It is one where traffic that has a place would be led elsewhere: pods, neighbours, and what this
host is connected to keep theirs, and whoever claims it does without, in routes, allowed IPs and firewall
alike. Nothing compares everybody with everybody: all is look-ups and sorted order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import msgspec

from kilo.mesh.near import near
from kilo.mesh.overlap import Places
from kilo.mesh.owners import NEVER, NOTHING, Known, name_of
from kilo.mesh.refused import refuse_addresses
from kilo.mesh.topology import Topology, broadcast_of
from kilo.model.host import HostFacts
from kilo.model.net import bounds, canonical_network, intersects, single
from kilo.model.node import Node, Peer
from kilo.model.settings import Settings
from kilo.model.topology import Segment

MOST_TOLD = 100
"""Conflicts that are told one by one: they travel with every heartbeat."""
_MOST_NAMES = 4
_KEY_FIELDS = ("annotation kilo.squat.ai/key", "spec.publicKey")
"""Where a node and a Peer say their public key."""


class _Claim(NamedTuple):
    """Who claims a network: a node or segment, with its location, or a Peer, with none."""

    location: str
    label: str
    node: str = ""


@dataclass(frozen=True)
class Settled:
    """Who gets what, here.

    ``topology``: as it was, but Peers and other locations without the networks that they do not get.
    ``gone``: networks that no other segment gets; ``ours``: pod CIDRs of neighbours that are the local
    node's; ``behind``: neighbours whose pod CIDR another one has; ``lost``: by location or Peer (as
    label_of), networks that somebody of another location has. ``cloned``: locations and Peers (as
    label_of) whose public key another one keeps. ``split``: networks of Peers that hold some that this
    host is connected to, and what is left of each without those. ``owners``: public keys and networks
    that several claim, and the name_of who gets each (of a WireGuard address, its location).
    ``unroutable``: pod CIDRs and addresses that may have no route (kilo.model.routable).
    ``conflicts``: by a stable key, for a person; ``limited`` cuts them to what may travel.
    """

    topology: Topology
    gone: Set[str]
    ours: Set[str]
    behind: Set[str]
    lost: Mapping[str, Set[str]]
    cloned: Set[str]
    split: Mapping[str, tuple[str, ...]]
    owners: Mapping[str, str]
    unroutable: Set[str]
    conflicts: dict[str, str]

    def allowed_ips(self, other: Segment | Peer) -> tuple[str, ...]:
        """The networks that the WireGuard peer of a Peer or of another segment gets.

        None if another one keeps its public key, since it has no WireGuard peer then.
        """
        if self.cloned and label_of(other) in self.cloned:
            return ()
        if isinstance(other, Peer):
            return tuple(dict.fromkeys(map(canonical_network, other.allowed_ips)))
        networks = dict.fromkeys(other.allowed_ips)
        if other.allowed_location_ips:
            networks.update(dict.fromkeys(map(canonical_network, other.allowed_location_ips)))
        lost = self.lost.get(other.location, frozenset())
        if lost or self.gone or self.unroutable:
            gone = self.gone | self.unroutable
            return tuple([n for n in networks if n not in lost and n not in gone])
        return tuple(networks)


def settle(
    topology: Topology, settings: Settings, host: HostFacts | None = None, known: Known = NOTHING
) -> Settled:
    """Settle all claims. Without ``host``, only its internal IP tells what it is connected to."""
    return _Court(topology, host, known).settle(settings)


def limited(conflicts: Mapping[str, str]) -> dict[str, str]:
    """The first MOST_TOLD, and how many more there are. Networks, the most common, come last."""
    keys = sorted(conflicts, key=lambda key: (key.startswith("network/"), key))
    told = {key: conflicts[key] for key in keys[:MOST_TOLD]}
    if len(keys) > MOST_TOLD:
        told["more"] = f"{len(keys) - MOST_TOLD} more conflicts are not listed"
    return told


def label_of(other: Segment | Peer) -> str:
    """How a segment or Peer is called."""
    return other.location if isinstance(other, Segment) else f"peer {other.name}"


def object_name(other: Segment | Peer) -> str:
    """The object behind a WireGuard peer: a segment's is its leader."""
    return f"node {other.hostnames[other.leader]}" if isinstance(other, Segment) else f"peer {other.name}"


class _Court:
    """Judges one kind of claim after the other; what it says depends on no order of its input."""

    def __init__(self, topology: Topology, host: HostFacts | None, known: Known) -> None:
        self._topology = topology
        self._known = known
        self._own = topology.own
        self._others = [s for s in topology.segments if s.location != topology.location]
        neighbours = [
            ip
            for name, ip in zip(self._own.hostnames, self._own.private_ips, strict=False)
            if name != topology.hostname
        ]
        self._near = near(host, topology.local.internal_ip, neighbours)
        ordered = [_local_first(self._own, topology.hostname), *self._others]
        self._cidrs = [cidr for segment in ordered for cidr in segment.cidrs]
        self._nodes = [node for segment in ordered for node in segment.hostnames]
        self._locations = [segment.location for segment in ordered for _ in segment.cidrs]
        self._pods: Places[int] = Places()
        self._pods.add(self._cidrs, range(len(self._cidrs)))
        self._gone: set[str] = set()
        self._ours: set[str] = set()
        self._behind: set[str] = set()
        self._lost: dict[str, set[str]] = defaultdict(set)
        self._owners: dict[str, str] = {}
        self._notes: dict[str, list[str]] = {}
        self._in_subnet: list[str] = []

    def settle(self, settings: Settings) -> Settled:
        cloned = self._judge_keys()
        self._judge_pods()
        self._judge_addresses()
        self._judge_twins()
        peers = tuple(map(self._judge_peer, self._topology.peers))
        segments = tuple(map(self._judge_location_ips, self._topology.segments))
        self._judge_subnet(settings)
        unroutable = refuse_addresses(self._topology.segments)
        for network, text in unroutable.items():
            self._note(f"network/{network}", text)
        for location, network, other in self._topology.fallen:
            what = f"{location} claims {network}, which overlaps what {other} has"
            self._note(f"network/{canonical_network(network)}", f"{what}: it does not get it")
        return Settled(
            topology=replace(self._topology, peers=peers, segments=segments),
            gone=self._gone,
            ours=self._ours,
            behind=self._behind,
            lost=self._lost,
            cloned=cloned,
            split=self._split(peers),
            owners=self._owners,
            unroutable=unroutable.keys(),
            conflicts={key: _joined(sorted(notes)) for key, notes in self._notes.items()},
        )

    def _judge_keys(self) -> set[str]:
        """One public key is one WireGuard peer: the local node's, else that of who had it first."""
        topology = self._topology
        local = topology.local
        nodes = [local, *(node for node in topology.members.values() if node is not local)]
        keys = [*(node.key for node in nodes), *(peer.public_key for peer in topology.peers)]
        if len(set(keys)) == len(keys):
            return set()
        holders: dict[str, list[Node | Peer]] = defaultdict(list)
        claimants: list[Node | Peer] = [*nodes, *topology.peers]
        for key, member in zip(keys, claimants, strict=True):
            holders[key].append(member)
        entitled = {f"node {s.hostnames[s.leader]}": s.location for s in self._others}
        entitled.update((name_of(peer), label_of(peer)) for peer in topology.peers)
        cloned = set[str]()
        for key, members in holders.items():
            if len(members) > 1:
                names = self._by_right(key, members)
                self._owners[key] = names[0]
                fields = _listed([*dict.fromkeys(_KEY_FIELDS[isinstance(m, Peer)] for m in members)])
                what = f"{_listed(names)} have the same public key {key}"
                self._note(f"key/{key}", f"{what}; the first counts ({fields})")
                found = [entitled[name] for name in names if name in entitled]
                cloned.update(found if members[0] is local else found[1:])
        return cloned

    def _by_right(self, key: str, members: Sequence[Node | Peer]) -> list[str]:
        """The names of those that have ``key``, of whom the first keeps it."""
        local = self._topology.local
        ranked = sorted(members, key=lambda m: (m is not local, *self._known.rank(key, m), m.name))
        return [name_of(member) for member in ranked]

    def _judge_pods(self) -> None:
        """Pod CIDRs that lie where this host is connected, or in one another."""
        for ip in self._near.own:
            for i in self._pods.holding(single(ip)):
                self._keep_near(i)
        for network in self._near.networks:
            held = [i for i in self._pods.within(network) if i and self._cidrs[i] not in self._gone]
            if held:
                what = f"pod CIDRs lie in {self._connected(network)}: {self._described(held)}"
                self._note(f"pods/{network}", f"{what}; no host there is reached at their addresses")
        for (version, width), table in self._pods.tables.items():
            wider = [(w, t) for (v, w), t in self._pods.tables.items() if v == version and w > width]
            for first, i in table.items() if wider else ():
                for holder in (t.get(first & ~w) for w, t in wider):
                    if holder is not None:
                        claim = _Claim(self._locations[i], f"node {self._nodes[i]}", self._nodes[i])
                        self._inside_pods(self._cidrs[i], claim, holder)

    def _keep_near(self, i: int) -> None:
        """Withhold another segment's pod CIDR if it would lead near addresses away."""
        cidr = self._cidrs[i]
        if self._locations[i] == self._own.location or cidr in self._gone:
            return
        if self._leads_away(cidr, f"node {self._nodes[i]}"):
            self._gone.add(cidr)

    def _judge_addresses(self) -> None:
        """Private addresses of nodes that are also pods', or WireGuard addresses."""
        tables: dict[int, list[tuple[int, dict[int, int]]]] = {4: [], 6: []}
        for (version, width), table in self._pods.tables.items():
            tables[version].append((~width, table))
        sub_version, low, high = bounds(self._topology.subnet)
        for segment in self._topology.segments:
            for at, network in enumerate(map(single, segment.private_ips)):
                version, number, _ = bounds(network)
                if low <= number <= high and version == sub_version:
                    self._in_subnet.append(f"{segment.private_ips[at]} of node {segment.hostnames[at]}")
                for mask, table in tables[version]:
                    i = table.get(number & mask)
                    if i is not None and self._nodes[i] != segment.hostnames[at]:
                        claim = _Claim(segment.location, f"node {segment.hostnames[at]}")
                        self._inside_pods(network, claim, i)
                        if segment.location == self._own.location:
                            self._keep_near(i)

    def _inside_pods(self, network: str, claim: _Claim, i: int) -> None:
        """A node claims what lies in another's pod CIDR: the longest prefix wins, but not on that node."""
        if i == 0:
            (self._ours if claim.location == self._own.location else self._gone).add(network)
        what = (
            f"{claim.label} claims {network}, inside {self._cidrs[i]}, the pod CIDR of node {self._nodes[i]}"
        )
        self._note(f"network/{network}", f"{what}: the latter keeps it, all others send it to the former")

    def _judge_twins(self) -> None:
        """One and the same network: the local node's, the own segment's, else that of who had it first."""
        topology = self._topology
        count, distinct = 0, set[str]()
        for segment in topology.segments:
            count += len(segment.allowed_ips) + len(segment.allowed_location_ips)
            distinct.update(segment.allowed_ips)
            distinct.update(map(canonical_network, segment.allowed_location_ips))
        for peer in topology.peers:
            count += len(peer.allowed_ips)
            distinct.update(map(canonical_network, peer.allowed_ips))
        claims: dict[str, list[_Claim]] = defaultdict(list)
        if count != len(distinct):
            for network, claim in self._all_claims():
                claims[network].append(claim)
        for network, names in topology.shared.items():
            claims[canonical_network(network)] += [_Claim("", f"peer {name}") for name in names]
        for network, claimants in claims.items():
            apart = [*dict.fromkeys(claimants)]
            if len(apart) > 1:
                self._judge_twin(network, apart)

    def _all_claims(self) -> Iterator[tuple[str, _Claim]]:
        """Every network that is claimed; of one network, who counts first first, if nobody had it."""
        topology = self._topology
        local = topology.hostname
        yield topology.local.subnet, _Claim(self._own.location, f"node {local}", local)
        for segment in (self._own, *self._others):
            location = segment.location
            for i, node in enumerate(segment.hostnames):
                claim = _Claim(location, f"node {node}", node)
                yield segment.cidrs[i], claim
                if segment.private_ips:
                    yield single(segment.private_ips[i]), claim
            whole = _Claim(location, location)
            yield single(segment.wireguard_ip), whole
            for network in segment.allowed_location_ips:
                yield canonical_network(network), whole
        for peer in topology.peers:
            for network in peer.allowed_ips:
                yield canonical_network(network), _Claim("", label_of(peer))

    def _judge_twin(self, network: str, claims: Sequence[_Claim]) -> None:
        claims = sorted(claims, key=lambda claim: self._rank(network, claim))
        names = _listed([claim.label for claim in claims])
        self._note(f"network/{network}", f"{names} claim {network}; the first counts")
        holder, *losers = claims
        self._owners[network] = holder.label
        if holder.location == self._own.location:
            self._gone.add(network)
            if network == self._topology.local.subnet:
                self._ours.add(network)
        for claim in losers:
            if not claim.location or claim.location != holder.location:
                self._lost[claim.location or claim.label].add(network)
            elif claim.node and self._topology.members[claim.node].subnet == network:
                self._behind.add(claim.node)

    def _rank(self, network: str, claim: _Claim) -> tuple[int, int, int, bool, int]:
        """Less is first: what is near, then WireGuard addresses, then who had it, then whose WireGuard peer
        the kernel sends it to, then nodes by age.

        Of Peers the first by name stays before the others: these have lost it in the topology already.
        No Peer gets anything in a pod CIDR.
        """
        place = self._known.place(network, claim.label)
        age = self._topology.members[claim.node].created or NEVER if claim.node else NEVER
        if claim.location == self._own.location:
            nearness = 2 - bool(claim.node) - (claim.node == self._topology.hostname)
            return 0, nearness, place, False, age
        if claim.location and not claim.node:
            return 1, 0, 0, False, 0
        holder = self._known.holder(network)
        elsewhere = not holder or self._places.get(holder) != claim.location
        if claim.node:
            return 2, 0, place, elsewhere, age
        if self._pods.holding(network):
            return 3, 0, 0, False, 0
        names = [name for name in self._known.owners.get(network, ()) if name.startswith("peer ")]
        return 2, 0, self._known.place(network, names[0] if names else claim.label), elsewhere, NEVER

    @cached_property
    def _places(self) -> dict[str, str]:
        """The location of whoever has a public key, "" for a Peer: all of a segment's nodes can have led it.
        Of those that have the same one, it is that of who keeps it."""
        members = self._topology.members
        claimed = [
            (members[n].key, f"node {n}", at) for n, at in zip(self._nodes, self._locations, strict=True)
        ]
        claimed += [(peer.public_key, name_of(peer), "") for peer in self._topology.peers]
        return {key: place for key, name, place in claimed if self._owners.get(key, name) == name}

    def _judge_peer(self, peer: Peer) -> Peer:
        label = label_of(peer)
        kept = self._kept(peer.allowed_ips, label)
        return peer if len(kept) == len(peer.allowed_ips) else msgspec.structs.replace(peer, allowed_ips=kept)

    def _judge_location_ips(self, segment: Segment) -> Segment:
        claimed = segment.allowed_location_ips
        if not claimed or segment.location == self._own.location:
            return segment
        kept = self._kept(claimed, segment.location)
        if len(kept) == len(claimed):
            return segment
        return msgspec.structs.replace(segment, allowed_location_ips=kept)

    def _kept(self, networks: Iterable[str], label: str) -> tuple[str, ...]:
        """Those of a Peer's or another location's networks that it gets."""
        return tuple([n for n in networks if self._stands(canonical_network(n), label)])

    def _stands(self, network: str, label: str) -> bool:
        if network in self._gone or network in self._lost.get(label, ()):
            return False
        key, what = f"network/{network}", f"{label} claims {network}"
        if pods := self._pods.holding(network):
            i = pods[0]
            what = f"{what}, inside {self._cidrs[i]}, the pod CIDR of node {self._nodes[i]}"
            self._note(key, f"{what}: it does not get it")
            return False
        if self._leads_away(network, label):
            return False
        version, first, last = bounds(network)
        if around := self._near.around(network):
            if first != last:
                self._note(key, f"{what}, inside {self._connected(around)}: it does not get it here")
                return False
            self._note(key, f"{what}, inside {self._connected(around)}: no host there is reached at it")
        of_version, low, high = bounds(self._topology.subnet)
        if version == of_version and low <= first and last <= high:
            what = f"{what}, inside the subnet {self._topology.subnet} of WireGuard addresses"
            self._note(key, f"{what}: each that is given to a segment is lost to it")
        return True

    def _leads_away(self, network: str, label: str) -> bool:
        """Whether a route to ``network`` would take an address from this host's neighbourhood."""
        ip = self._near.led_away(network)
        if ip:
            what = f"{label} claims {network}, which holds {ip}, near this host"
            self._note(f"network/{network}", f"{what}: it does not get it here")
        return bool(ip)

    def _judge_subnet(self, settings: Settings) -> None:
        """WireGuard addresses that are somebody else's too. All agents give out the same ones."""
        subnet, last = self._topology.subnet, self._topology.segments[-1]
        near = [f"{n} ({name})" for n, name in self._near.networks.items() if name and intersects(n, subnet)]
        pods = {*self._pods.holding(subnet), *self._pods.within(subnet)}
        clashes = {
            "pod CIDRs": self._described(sorted(pods)),
            "service CIDRs": _listed([n for n in settings.service_cidrs if intersects(n, subnet)]),
            "addresses of nodes": _listed(self._in_subnet),
            "networks of this host": _listed(near),
        }
        for kind, names in clashes.items():
            if names:
                what = f"the subnet {subnet} of WireGuard addresses overlaps {kind}: {names}"
                key = f"subnet/{kind.replace(' ', '-')}"
                self._note(key, f"{what}; another --subnet is needed, the same on every node")
        if last.wireguard_ip == broadcast_of(subnet):
            what = f"{last.location} has {last.wireguard_ip}, the broadcast address of the subnet {subnet}"
            self._note("subnet/broadcast", f"{what}: nobody reaches it there; a wider --subnet is needed")

    def _split(self, peers: Iterable[Peer]) -> dict[str, tuple[str, ...]]:
        networks = [canonical_network(network) for peer in peers for network in peer.allowed_ips]
        found = {network: self._near.without(network) for network in networks}
        return {network: pieces for network, pieces in found.items() if pieces != (network,)}

    def _described(self, found: Sequence[int]) -> str:
        """Some pod CIDRs, for a person."""
        names = [f"{self._cidrs[i]} of node {self._nodes[i]}" for i in found[:_MOST_NAMES]]
        return _listed(names, len(found))

    def _connected(self, network: str) -> str:
        name = self._near.networks[network]
        return f"{network}, to which this host is connected" + (f" by {name}" if name else "")

    def _note(self, key: str, text: str) -> None:
        self._notes.setdefault(key, []).append(text)


def _local_first(own: Segment, hostname: str) -> Segment:
    """The own segment with the local node's name and pod CIDR before those of the others."""
    i = own.hostnames.index(hostname)
    names = (hostname, *own.hostnames[:i], *own.hostnames[i + 1 :])
    cidrs = (own.cidrs[i], *own.cidrs[:i], *own.cidrs[i + 1 :])
    return msgspec.structs.replace(own, hostnames=names, cidrs=cidrs)


def _joined(notes: Sequence[str]) -> str:
    """The first few of what there is to say of one thing."""
    more = len(notes) - _MOST_NAMES
    return "; ".join(notes if more <= 0 else (*notes[:_MOST_NAMES], f"and {more} more"))


def _listed(names: Sequence[str], of: int = 0) -> str:
    """``a``, ``a and b``, ``a, b and c``; of many the first ones and how many more there are.

    ``of``: how many there are, where ``names`` are only the first ones.
    """
    if not names:
        return ""
    many = max(of, len(names))
    if many > _MOST_NAMES:
        names = [*names[:_MOST_NAMES], f"{many - _MOST_NAMES} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
