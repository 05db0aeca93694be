from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kilo.mesh.overlap import NetworkIndex
from kilo.model.net import contains, intersects, text_of

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
    expected = any(intersects(n, network) for n, owner in entries if owner != besides)
    assert index.overlaps(network, besides) == expected


def test_the_last_address_counts() -> None:
    index = NetworkIndex()
    index.add("10.0.0.255/32")
    assert index.overlaps("10.0.0.0/24")
    assert not index.overlaps("10.0.0.0/25")


@given(entries, st.integers(10 << 24, (10 << 24) + 64))
def test_holds_as_if_compared_one_by_one(entries: list[tuple[str, str]], number: int) -> None:
    index = NetworkIndex()
    for entry in entries:
        index.add(*entry)
    expected = any(contains(network, text_of(4, number)) for network, _ in entries)
    assert index.holds(4, number) == expected


@given(entries, networks)
def test_what_is_discarded_was_never_there(entries: list[tuple[str, str]], network: str) -> None:
    index = NetworkIndex()
    for entry in entries:
        index.add(*entry)
    assert index.overlaps(network) == any(intersects(n, network) for n, _ in entries)
    for entry in entries:
        index.discard(*entry)
    assert not index.overlaps(network)
