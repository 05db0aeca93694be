"""Which of many networks overlap, and whose they are. Pure; used by kilo.mesh.topology and claims.

Networks of one IP version either nest or are disjoint, so a network overlaps another if the other
holds its first address, which is one look-up for each prefix length, or starts inside it, which is
a search in sorted order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from typing import Generic, TypeVar

from kilo.model.net import bounds

T = TypeVar("T")


class Places(Generic[T]):
    """Networks that belong to one owner each: which of them hold another network, and which lie in it."""

    def __init__(self) -> None:
        self.tables: dict[tuple[int, int], dict[int, T]] = {}
        """By IP version and width (the last address less the first): first address to owner."""
        self._sorted: dict[tuple[int, int], list[int]] = {}

    def add(self, networks: Iterable[str], owners: Iterable[T]) -> None:
        """Who came first keeps a network."""
        kind, table = (0, 0), dict[int, T]()
        for (version, first, last), owner in zip(map(bounds, networks), owners, strict=True):
            if (version, last - first) != kind:
                kind = (version, last - first)
                table = self.tables.setdefault(kind, {})
            if first not in table:
                table[first] = owner

    def owner_of(self, network: str, default: T) -> T:
        """Who has exactly ``network``: ``default`` from now on, if nobody has."""
        version, first, last = bounds(network)
        return self.tables.setdefault((version, last - first), {}).setdefault(first, default)

    def holding(self, network: str) -> list[T]:
        """The owners of all that are equal to ``network`` or wider and hold it, the narrowest first."""
        version, first, last = bounds(network)
        found = []
        for (of_version, width), table in self.tables.items():
            if of_version == version and width >= last - first:
                owner = table.get(first & ~width)
                if owner is not None:
                    found.append((width, owner))
        return [owner for _, owner in sorted(found, key=_width)]

    def within(self, network: str) -> list[T]:
        """The owners of all that are narrower than ``network`` and lie in it, or equal to it."""
        version, first, last = bounds(network)
        found = []
        for key, table in self.tables.items():
            if key[0] == version and key[1] <= last - first:
                order = self._sorted.setdefault(key, [])
                if len(order) != len(table):
                    order[:] = sorted(table)
                inside = order[bisect_left(order, first) : bisect_right(order, last)]
                found += [table[number] for number in inside]
        return found


def _width(place: tuple[int, T]) -> int:
    return place[0]


class NetworkIndex:
    """Networks (Network or Interface form), each with any number of owners."""

    def __init__(self) -> None:
        self._places: Places[Counter[str]] = Places()

    def add(self, network: str, owner: str = "") -> None:
        self._places.owner_of(network, Counter())[owner] += 1

    def discard(self, network: str, owner: str = "") -> None:
        """Take back one ``add`` of the same."""
        owners = self._places.owner_of(network, Counter())
        owners[owner] -= 1
        if not owners[owner]:
            del owners[owner]

    def overlapping(self, network: str, besides: str | None = None) -> str | None:
        """An owner, other than ``besides``, of a network that shares an address with ``network``."""
        found = self._places.holding(network) + self._places.within(network)
        return next((o for owners in found for o in owners if o != besides), None)

    def holding(self, network: str) -> str | None:
        """An owner of a network in which all of ``network`` lies."""
        return next((o for owners in self._places.holding(network) for o in owners), None)
