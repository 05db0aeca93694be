"""Networks as intervals: any members, put into a set and taken out again, over a model of the set."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.netctl.firewall.backend import member_of
from kilo.netctl.firewall.members import Interval, Members, outermost
from kilo.netctl.firewall.nft_edits import Look
from kilo.netctl.firewall.nft_intervals import (
    CATCH_ALL,
    Change,
    growth,
    intervals,
    replacement,
)

SMALL = st.builds(
    lambda address, bits: member_of(f"10.0.0.{address}/{bits}")[1],
    st.integers(0, 255),
    st.integers(26, 32),
)
"""Members of one /24, so that they often lie in one another."""
WIDE = st.sampled_from([member_of(n)[1] for n in ("0.0.0.0/0", "0.0.0.0/1", "255.0.0.0/8", "10.0.0.0/24")])
MEMBERS = st.sets(SMALL | WIDE, max_size=12)
ODD = st.sets(st.tuples(st.integers(0, 200), st.integers(1, 9)), max_size=4)
"""Intervals that are no networks, as somebody else may put in: first address, and how many."""


def addresses(found: Iterable[Interval]) -> set[int]:
    """The addresses in intervals, of 10.0.0.0/24 and a few outside it."""
    looked_at = [*range(0x0A000000, 0x0A000100), 0, 1, 0x7FFFFFFF, 0x80000000, 0xFF000000, 0xFFFFFFFF]
    bounds = [
        (int.from_bytes(start), int.from_bytes(end) if end else 1 << 32) for start, end in found if start
    ]
    return {address for address in looked_at for start, end in bounds if start <= address < end}


def disjoint(found: Iterable[Interval]) -> bool:
    there = sorted(found)
    return all(end and end <= start for (_, end), (start, _) in pairwise(there))


def applied(actual: set[Interval], change: Change) -> set[Interval]:
    """What the kernel has after a transaction, which it would refuse if this fails."""
    assert change.gone <= actual
    assert not change.new & (actual - change.gone)
    result = actual - change.gone | change.new
    assert disjoint(result)
    return result


def odd(parts: set[tuple[int, int]]) -> set[Interval]:
    """Some of the intervals of ``parts`` that do not overlap."""
    found: set[Interval] = set()
    for first, count in sorted(parts):
        interval = ((0x0A000000 + first).to_bytes(4), (0x0A000000 + first + count).to_bytes(4))
        if disjoint({*found, interval}):
            found.add(interval)
    return found


@given(MEMBERS)
def test_the_outermost_cover_all_members_and_nothing_else(members: set[bytes]) -> None:
    found = outermost(members)
    assert disjoint(found)
    assert addresses(found) == addresses(outermost({m}).pop() for m in members)
    assert len(found) <= len(members)


@given(MEMBERS, st.lists(st.tuples(st.booleans(), SMALL | WIDE), max_size=30))
def test_the_outermost_are_known_as_members_come_and_go(
    first: set[bytes], steps: list[tuple[bool, bytes]]
) -> None:
    """And comparing what has moved is as good as comparing all, if all was right before."""
    members = Members()
    for member in first:
        members.add(member)
    actual = set(members.outer())
    before = set(actual)
    counts = dict.fromkeys(first, 1)
    for comes, member in steps:
        if comes:
            counts[member] = counts.get(member, 0) + 1
            assert members.add(member) == (counts[member] == 1)
        elif counts.get(member):
            counts[member] -= 1
            assert members.remove(member) == (counts[member] == 0)
    there = {member for member, count in counts.items() if count}
    assert members.networks() == there
    assert members.outer() == outermost(there)
    assert members.outer_moved >= members.outer() ^ before
    look, whole = Look(members.outer(), members.outer_moved), Look(members.outer())
    assert look.growth(actual) == whole.growth(actual)
    actual = applied(actual, look.growth(actual))
    assert look.replacement(actual) == whole.replacement(actual)


@given(MEMBERS, MEMBERS)
def test_growth_loses_nothing_and_replacement_leaves_nothing_over(old: set[bytes], new: set[bytes]) -> None:
    before, wanted = outermost(old), outermost(new)
    grown = applied(before, growth(wanted, before))
    assert addresses(grown) == addresses(before) | addresses(wanted)
    assert not growth(wanted, grown)
    assert applied(grown, replacement(wanted, grown)) == wanted


@given(MEMBERS, ODD)
def test_whatever_somebody_put_into_a_set_ours_gets_in(
    members: set[bytes], parts: set[tuple[int, int]]
) -> None:
    wanted, before = outermost(members), odd(parts) | {CATCH_ALL}
    change = growth(wanted, before)
    assert change.gone <= before and disjoint((before - change.gone - {CATCH_ALL}) | change.new)
    grown = before - change.gone | change.new
    assert addresses(grown) >= addresses(wanted)
    assert replacement(wanted, grown).gone >= {CATCH_ALL}


@given(MEMBERS, st.randoms(use_true_random=False))
def test_bounds_in_any_order_are_the_intervals_again(members: set[bytes], random: object) -> None:
    wanted = outermost(members)
    bounds = [(start, True) for start, _ in wanted] + [(end, False) for _, end in wanted if end]
    random.shuffle(bounds)  # type: ignore[attr-defined]
    assert intervals(bounds) == wanted


def test_bounds_that_nft_or_others_make() -> None:
    zero, one, two = bytes(4), bytes((10, 0, 0, 0)), bytes((10, 0, 1, 0))
    assert intervals([(zero, False)]) == set()
    assert intervals([(one, True), (two, True)]) == {(one, two), (two, b"")}
    assert intervals([(b"", True)]) == {CATCH_ALL}


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "255.255.255.255/32", "ffff::/16"])
def test_what_reaches_to_the_last_address_has_no_end(network: str) -> None:
    ((start, end),) = outermost({member_of(network)[1]})
    assert end == b""
    assert intervals([(start, True)]) == {(start, end)}
