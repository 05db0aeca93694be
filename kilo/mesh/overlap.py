"""Which of many networks overlap, and whose they are. Pure; used by kilo.mesh.topology.

Networks of one IP version either nest or are disjoint, so a network overlaps another if the other
holds its first address, which is one look-up for each prefix length, or starts inside it, which is
a search in sorted order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from kilo.model.net import bounds


class NetworkIndex:
    """Networks (Network or Interface form), each with any number of owners."""

    def __init__(self) -> None:
        self._owners: dict[tuple[int, int], dict[int, Counter[str]]] = {}
        self._order: list[tuple[int, int, int]] = []
        self._sorted = True

    def add(self, network: str, owner: str = "") -> None:
        version, first, last = bounds(network)
        table = self._owners.setdefault((version, last - first), {})
        if first not in table:
            table[first] = Counter()
            self._order.append((version, first, last - first))
            self._sorted = False
        table[first][owner] += 1

    def discard(self, network: str, owner: str = "") -> None:
        """Take back one ``add`` of the same."""
        version, first, last = bounds(network)
        owners = self._owners[(version, last - first)][first]
        owners[owner] -= 1
        if not owners[owner]:
            del owners[owner]

    def overlaps(self, network: str, besides: str | None = None) -> bool:
        """Whether ``network`` shares an address with one that somebody else than ``besides`` owns."""
        version, first, last = bounds(network)
        return any(owner != besides for owner in self._owners_in(version, first, last))

    def holds(self, version: int, number: int) -> bool:
        """Whether an address lies in any of the networks."""
        return any(True for _ in self._owners_around(version, number))

    def _owners_in(self, version: int, first: int, last: int) -> Iterator[str]:
        yield from self._owners_around(version, first)
        if not self._sorted:
            self._order.sort()
            self._sorted = True
        for i in range(bisect_left(self._order, (version, first, 0)), len(self._order)):
            at = self._order[i]
            if at[0] != version or at[1] > last:
                return
            yield from self._owners[(version, at[2])][at[1]]

    def _owners_around(self, version: int, number: int) -> Iterator[str]:
        """Of the networks that hold ``number``."""
        for (of_version, width), table in self._owners.items():
            if of_version == version and (found := table.get(number & ~width)):
                yield from found
