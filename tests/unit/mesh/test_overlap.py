from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kilo.mesh.overlap import NetworkIndex, Places
from kilo.model.net import bounds, canonical_network, contains, intersects, text_of

networks = st.builds(
    lambda n, bits: f"{text_of(4, n)}/{bits}", st.integers(10 << 24, (10 << 24) + 64), st.integers(24, 32)
) | st.builds(lambda n, bits: f"{text_of(6, n)}/{bits}", st.integers(0, 64), st.integers(120, 128))
entries = st.lists(st.tuples(networks, st.sampled_from("ab")), max_size=8)


@given(entries, networks, st.sampled_from(["a", "b", None]))
def test_overlaps_as_if_compared_one_by_one(
    entries: list[tuple[str, str]], network: str, besides: str | None
) -> None:
    index = NetworkIndex()
    for entry in entries:
        index.add(*entry)
    expected: set[str | None] = {owner for n, owner in entries if intersects(n, network) and owner != besides}
    assert index.overlapping(network, besides) in (expected or {None})


def test_the_last_address_counts() -> None:
    index = NetworkIndex()
    index.add("10.0.0.255/32")
    assert index.overlapping("10.0.0.0/24") is not None
    assert index.overlapping("10.0.0.0/25") is None


@given(entries, st.integers(10 << 24, (10 << 24) + 64))
def test_holds_as_if_compared_one_by_one(entries: list[tuple[str, str]], number: int) -> None:
    index = NetworkIndex()
    for entry in entries:
        index.add(*entry)
    expected: set[str | None] = {owner for network, owner in entries if contains(network, text_of(4, number))}
    assert index.holding(f"{text_of(4, number)}/32") in (expected or {None})


@given(entries, networks)
def test_what_is_discarded_was_never_there(entries: list[tuple[str, str]], network: str) -> None:
    index = NetworkIndex()
    for entry in entries:
        index.add(*entry)
    assert (index.overlapping(network) is not None) == any(intersects(n, network) for n, _ in entries)
    for entry in entries:
        index.discard(*entry)
    assert index.overlapping(network) is None


@given(entries, networks)
def test_places_know_all_that_hold_a_network_the_narrowest_first_and_all_inside_it(
    entries: list[tuple[str, str]], network: str
) -> None:
    places: Places[str] = Places()
    first: dict[str, str] = {}
    places.add([at for at, _ in entries], [owner for _, owner in entries])
    for at, owner in entries:
        first.setdefault(canonical_network(at), owner)
    version, start, end = bounds(network)
    holding = [n for n in first if bounds(n)[0] == version and bounds(n)[1] <= start and end <= bounds(n)[2]]
    holding.sort(key=lambda n: bounds(n)[2] - bounds(n)[1])
    assert places.holding(network) == [first[n] for n in holding]
    inside = [n for n in first if bounds(n)[0] == version and start <= bounds(n)[1] and bounds(n)[2] <= end]
    assert sorted(places.within(network)) == sorted(first[n] for n in inside)
