"""Networks as the intervals that a set of nf_tables holds, and what to change about a set.

Pure. A set takes no intervals that overlap. Networks never overlap by halves: one lies in the other,
or they are apart. So a set holds the outermost of its members, and a member that lies in another is
there only in our memory, until that one goes. Called by the nft_… modules.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Set
from typing import NamedTuple

Interval = tuple[bytes, bytes]
"""The first address, and the one after the last, in network order; b"" if there is none after it."""
CATCH_ALL: Interval = (b"", b"")
"""nft's ``*``, which stands for everything, and is none of ours."""


class Change(NamedTuple):
    """What to take out of a set, then what to put in, in one transaction."""

    gone: set[Interval]
    new: set[Interval]

    def __bool__(self) -> bool:
        return bool(self.gone or self.new)


NO_CHANGE = Change(set(), set())


def outermost(members: Set[bytes]) -> set[Interval]:
    """The intervals of ``members`` (as of backend.member_of, of one IP version) that lie in no other."""
    found: set[Interval] = set()
    behind: bytes | None = b""
    for member in sorted(members):  # of those that start alike, the widest first
        first = member[:-1]
        if behind is None or first < behind:
            continue
        size = len(first) * 8
        last = int.from_bytes(first) + (1 << size - member[-1])
        behind = last.to_bytes(len(first)) if last < 1 << size else None
        found.add((first, behind or b""))
    return found


def intervals(bounds: Iterable[tuple[bytes, bool]]) -> set[Interval]:
    """The intervals between ``bounds``, in any order: a key, and whether an interval ends before it.

    An end that ends nothing is left out: nft puts one at address zero.
    """
    found: set[Interval] = set()
    open_at: bytes | None = None
    for key, ends in sorted(bounds, key=_end_first):
        if not key:
            found.add(CATCH_ALL)
        elif ends:
            if open_at is not None:
                found.add((open_at, key))
            open_at = None
        else:
            if open_at is not None:
                found.add((open_at, key))
            open_at = key
    if open_at is not None:
        found.add((open_at, b""))
    return found


def _end_first(bound: tuple[bytes, bool]) -> tuple[bytes, bool]:
    return bound[0], not bound[1]


def growth(wanted: Set[Interval], actual: Set[Interval]) -> Change:
    """What to change so that ``actual`` covers all of ``wanted``, and loses nothing of what we put in.

    Those that a wanted one covers give way to it. So does what lies across the edge of a wanted one,
    which nobody who puts in networks has put there.
    """
    missing = wanted - actual
    if not missing:
        return NO_CHANGE
    if not actual:
        return Change(set(), set(missing))
    there = sorted(actual - {CATCH_ALL})
    starts = [start for start, _ in there]
    gone = {
        other
        for interval in missing
        for other in _touching(there, starts, interval)
        if not _covers(other, interval)
    }
    rest = [interval for interval in there if interval not in gone]
    starts = [start for start, _ in rest]
    new = {
        interval
        for interval in missing
        if not any(_covers(other, interval) for other in _touching(rest, starts, interval))
    }
    return Change(gone if new else set(), new)


def replacement(wanted: Set[Interval], actual: Set[Interval]) -> Change:
    """What to change so that ``actual`` is ``wanted``."""
    return Change(set(actual - wanted), set(wanted - actual))


def _touching(there: list[Interval], starts: list[bytes], interval: Interval) -> list[Interval]:
    """Those of ``there``, which are sorted and apart, that have an address in common with ``interval``."""
    start, end = interval
    first = bisect_left(starts, start)
    if first and (not there[first - 1][1] or there[first - 1][1] > start):
        first -= 1
    last = bisect_left(starts, end) if end else len(starts)
    return there[first:last]


def _covers(outer: Interval, inner: Interval) -> bool:
    return outer[0] <= inner[0] and (not outer[1] or (bool(inner[1]) and inner[1] <= outer[1]))
