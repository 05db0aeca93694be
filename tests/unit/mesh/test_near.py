from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kilo.mesh.near import near
from kilo.model.host import HostFacts, Link
from kilo.model.net import bounds, canonical_network, contains, intersects, single, text_of

NUMBERS = st.integers(0, 63)
interfaces = st.builds(lambda n, bits: f"10.0.0.{n}/{bits}", NUMBERS, st.integers(26, 32)) | st.builds(
    lambda n, bits: f"fd00::{n:x}/{bits}".replace("::0/", "::/"), NUMBERS, st.integers(122, 128)
)
ips = interfaces.map(lambda interface: interface.partition("/")[0])


def host(*addresses: str, ignored: tuple[str, ...] = ()) -> HostFacts:
    links = tuple([Link(f"e{i}", i, 1500, addresses=(a,)) for i, a in enumerate(addresses)])
    return HostFacts("key", links=links, ignored_links=ignored)


def width(network: str) -> int:
    _, first, last = bounds(network)
    return last - first


@given(st.lists(interfaces, max_size=4), st.lists(ips, max_size=4), interfaces)
def test_addresses_are_led_away_by_what_is_no_wider_than_their_own_network(
    own: list[str], neighbours: list[str], claim: str
) -> None:
    found = near(host(*own), "", neighbours).led_away(claim)
    reaches = [(a.partition("/")[0], width(a)) for a in own]
    for ip in neighbours:
        around = [width(a) for a in own if contains(a, ip)]
        reaches.append((ip, min(around, default=1 << 128)))
    led = {ip for ip, reach in reaches if contains(claim, ip) and reach >= width(claim)}
    assert (found in led) if found else not led


@given(st.lists(interfaces, max_size=4), interfaces)
def test_the_narrowest_network_around(own: list[str], claim: str) -> None:
    found = near(host(*own), "", ()).around(canonical_network(claim))
    holding = [canonical_network(a) for a in own if intersects(a, claim) and width(a) >= width(claim)]
    assert found == min(holding, key=width, default="")


@given(st.lists(interfaces, max_size=4), interfaces)
def test_what_is_left_is_all_but_what_is_near(own: list[str], claim: str) -> None:
    claim = canonical_network(claim)
    pieces = near(host(*own), "", ()).without(claim)
    holes = [a for a in own if intersects(a, claim) and 0 < width(a) <= width(claim)]
    version, first, last = bounds(claim)
    for number in range(first, last + 1):
        ip = text_of(version, number)
        assert sum(contains(piece, ip) for piece in pieces) == (not any(contains(h, ip) for h in holes))
    assert all(canonical_network(piece) == piece for piece in pieces)


def test_links_of_our_own_and_those_that_say_nothing_do_not_count() -> None:
    found = near(host("10.4.0.1/16", "10.0.0.1/24", "10.9.0.1/0", ignored=("e0",)), "", ())
    assert found.networks == {"10.0.0.0/24": "e1"}
    assert found.own == ("10.0.0.1",)


def test_without_a_host_its_internal_ip_tells_something() -> None:
    found = near(None, "10.0.0.1/24", ("10.0.0.2", "10.0.9.3"))
    assert found.around("10.0.0.8/29") == "10.0.0.0/24"
    assert found.led_away("10.0.0.0/8") == "10.0.9.3", "nothing is known of the way there"
    assert found.led_away("10.0.0.0/23") == ""
    assert near(None, "", ()).led_away(single("10.0.0.1")) == ""
