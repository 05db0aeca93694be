"""What is near this host: the networks that its links are connected to, and its neighbours' addresses.

The kernel sends a packet by the longest prefix, so a route leads a near address away if it holds it and
is no wider than the network through which the address is reached now. Pure; used by kilo.mesh.claims.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache

from kilo.mesh.overlap import Places
from kilo.model.host import HostFacts
from kilo.model.net import bounds, canonical_network, ip_of, single, text_of

_NOWHERE = 1 << 128
"""Wider than any network: by the default route, or by one that we do not know."""


class Near:
    """``networks``: what the host is connected to, with the name of the link. ``own``: its addresses (IP)."""

    def __init__(
        self, networks: Mapping[str, str], own: Sequence[tuple[str, str]], neighbours: Sequence[str]
    ) -> None:
        """``own``: IP, and the network with which it is assigned. ``neighbours``: IP."""
        self.networks = networks
        self.own = tuple([ip for ip, _ in own])
        self._places: Places[str] = Places()
        self._places.add(networks, networks)
        self._groups: dict[tuple[int, int], list[int]] = {}
        for ip, network in (*own, *((ip, self.around(single(ip))) for ip in neighbours)):
            version, number, _ = bounds(single(ip))
            _, first, last = bounds(network) if network else (0, 0, _NOWHERE)
            self._groups.setdefault((version, last - first), []).append(number)
        for numbers in self._groups.values():
            numbers.sort()

    def led_away(self, network: str) -> str:
        """A near address (IP) that a route to ``network`` would lead away, "" if there is none."""
        version, first, last = bounds(network)
        for (of_version, reach), numbers in self._groups.items():
            if of_version == version and last - first <= reach:
                i = bisect_left(numbers, first)
                if i < len(numbers) and numbers[i] <= last:
                    return text_of(version, numbers[i])
        return ""

    def around(self, network: str) -> str:
        """The narrowest network of ``networks`` that is equal to ``network`` or holds it, "" if none does."""
        return next(iter(self._places.holding(network)), "")

    def without(self, network: str) -> tuple[str, ...]:
        """``network`` less those of ``networks`` that lie in it and hold others than this host."""
        version, first, last = bounds(network)
        pieces = [network]
        for hole in self.networks:
            of_version, start, end = bounds(hole)
            if of_version == version and first <= start < end <= last:
                pieces = [rest for piece in pieces for rest in _less(piece, hole)]
        return tuple(pieces)


def _less(network: str, hole: str) -> list[str]:
    """``network`` without ``hole``, which lies in it, holds it, or does not touch it."""
    version, first, last = bounds(network)
    _, start, end = bounds(hole)
    if start > last or end < first:
        return [network]
    pieces = []
    while last - first > end - start:
        half = (last - first) // 2
        bits = (32 if version == 4 else 128) - half.bit_length()
        if start <= first + half:
            pieces.append(f"{text_of(version, first + half + 1)}/{bits}")
            last = first + half
        else:
            pieces.append(f"{text_of(version, first)}/{bits}")
            first += half + 1
    return pieces


def near(host: HostFacts | None, internal_ip: str, neighbours: Sequence[str]) -> Near:
    """What is near a host. Links that are the agent's own, or the CNI bridge, do not count.

    Without ``host`` only the network of ``internal_ip`` (Interface form or "") is known.
    ``neighbours``: private addresses (IP) of the other nodes of the segment.
    """
    if host is None:
        return _near((("", internal_ip),) if internal_ip else (), tuple(neighbours))
    links = [link for link in host.links if link.name not in host.ignored_links]
    return _near(tuple([(link.name, a) for link in links for a in link.addresses]), tuple(neighbours))


@lru_cache(4)
def _near(assigned: tuple[tuple[str, str], ...], neighbours: tuple[str, ...]) -> Near:
    """Cached: plan after plan asks for the same."""
    networks: dict[str, str] = {}
    own = []
    for name, interface in assigned:
        network = canonical_network(interface)
        if network.endswith("/0"):
            continue  # it says nothing about where anybody is
        networks.setdefault(network, name)
        own.append((ip_of(interface), network))
    return Near(networks, own, neighbours)
