"""The networks in one of the plan's sets, and the outermost of them, as both move.

Pure. A member is an address in network order and a byte with the length of its prefix; host bits are
zero. Networks never overlap by halves: one lies in the other, or they are apart. So those that lie
in no other are intervals without overlap, which is what a set of nf_tables can hold. They are kept
up to date from when they are first asked for, at a cost that follows the change and not the size.
Called by kilo.netctl.firewall.backend.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Set

Interval = tuple[bytes, bytes]
"""The first address, and the one after the last, in network order; b"" if there is none after it."""


def interval_of(member: bytes) -> Interval:
    first = member[:-1]
    behind = int.from_bytes(first) + (1 << len(first) * 8 - member[-1])
    return first, b"" if behind >> len(first) * 8 else behind.to_bytes(len(first))


def outermost(members: Iterable[bytes]) -> set[Interval]:
    """The intervals of ``members``, of one IP version, that lie in no other."""
    found: set[Interval] = set()
    end: bytes = b"\0"
    for member in sorted(members):  # of those that start alike, the widest first
        if not found or (end and member[:-1] >= end):
            interval = interval_of(member)
            found.add(interval)
            end = interval[1]
    return found


class Members:
    """Each network counts how often it was added, so that it goes with the last who wanted it."""

    __slots__ = ("_counts", "_lengths", "_order", "_outer", "outer_moved")

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}
        self._outer: set[Interval] | None = None
        self._order: list[bytes] = []
        self._lengths: dict[int, int] = {}
        self.outer_moved: set[Interval] = set()
        """Those that came to be, or ceased to be, among the outermost since this was last cleared."""

    def networks(self) -> Set[bytes]:
        return self._counts.keys()

    def outer(self) -> Set[Interval]:
        """The outermost. The answer is not to be changed, and moves with the members."""
        if self._outer is None:
            self._outer = outermost(self._counts)
            self._order = sorted(self._counts)
            for member in self._order:
                self._lengths[member[-1]] = self._lengths.get(member[-1], 0) + 1
        return self._outer

    def add(self, member: bytes) -> bool:
        """Whether it is new."""
        self._counts[member] = count = self._counts.get(member, 0) + 1
        if count == 1 and self._outer is not None:
            insort(self._order, member)
            self._lengths[member[-1]] = self._lengths.get(member[-1], 0) + 1
            if not self._lies_in_another(member):
                self._move(self._outer & set(map(interval_of, self._inside(member))), {interval_of(member)})
        return count == 1

    def remove(self, member: bytes) -> bool:
        """Whether it is gone. It must have been added."""
        self._counts[member] -= 1
        if self._counts[member]:
            return False
        del self._counts[member]
        if self._outer is not None:
            del self._order[bisect_left(self._order, member)]
            self._lengths[member[-1]] -= 1
            interval = interval_of(member)
            if interval in self._outer:
                self._move({interval}, outermost(self._inside(member)))
        return True

    def _move(self, gone: set[Interval], new: set[Interval]) -> None:
        if self._outer is not None:
            self._outer -= gone
            self._outer |= new
            self.outer_moved |= gone | new

    def _inside(self, member: bytes) -> list[bytes]:
        """The members that lie in ``member``, sorted, with itself if it is one."""
        _, end = interval_of(member)
        first = bisect_left(self._order, member)
        return self._order[first : bisect_left(self._order, end) if end else len(self._order)]

    def _lies_in_another(self, member: bytes) -> bool:
        size = len(member) - 1
        address = int.from_bytes(member[:-1])
        for length, count in self._lengths.items():
            if count and length < member[-1]:
                host_bits = size * 8 - length
                if (address >> host_bits << host_bits).to_bytes(size) + bytes((length,)) in self._counts:
                    return True
        return False
