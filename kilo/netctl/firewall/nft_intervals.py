"""The intervals that a set of nf_tables has, and what to change about it.

Pure. A set takes no intervals that overlap, so it holds the outermost of the networks that are
wanted (see members). Called by the nft_… modules.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Set
from typing import NamedTuple

from kilo.netctl.firewall.members import Interval

Bound = tuple[bytes, bool]
"""A key of a set, and whether an interval starts with it; else one ends before it."""
CATCH_ALL: Interval = (b"", b"")
"""nft's ``*``, which stands for everything, and is none of ours."""


class Change(NamedTuple):
    """What to take out of a set, then what to put in, in one transaction."""

    gone: set[Interval]
    new: set[Interval]

    def __bool__(self) -> bool:
        return bool(self.gone or self.new)


NO_CHANGE = Change(set(), set())


def intervals(bounds: Iterable[Bound]) -> set[Interval]:
    """The intervals between ``bounds``, in any order.

    An end that ends nothing is left out: nft puts one at address zero.
    """
    found: set[Interval] = set()
    start: bytes | None = None
    for key, starts in sorted(bounds):  # where one ends and the next starts, the end comes first
        if not key:
            found.add(CATCH_ALL)
            continue
        if start is not None:
            found.add((start, key))
        start = key if starts else None
    if start is not None:
        found.add((start, b""))
    return found


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
