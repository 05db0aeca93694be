"""Addresses as text: the answers are those of Go's net package and of ipaddress."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.errors import ProtocolError
from kilo.model import net

networks = st.one_of(
    st.builds(lambda a, n: ipaddress.ip_interface((a, n)), st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(lambda a, n: ipaddress.ip_interface((a, n)), st.ip_addresses(v=6), st.integers(0, 128)),
).filter(lambda i: not (i.version == 6 and i.ip.ipv4_mapped))


@given(networks)
def test_canonical_forms(interface: ipaddress.IPv4Interface) -> None:
    text = f"{interface.ip}/{interface.network.prefixlen}"
    assert net.canonical_interface(text) == text
    assert net.canonical_network(text) == str(interface.network)
    assert net.ip_of(text) == str(interface.ip)
    assert net.version_of(text) == interface.version


@given(networks, networks)
def test_contains_and_intersects(a: ipaddress.IPv4Interface, b: ipaddress.IPv4Interface) -> None:
    same = a.version == b.version
    assert net.contains(str(a), str(b.ip)) == (same and b.ip in a.network)
    assert net.intersects(str(a), str(b)) == (same and a.network.overlaps(b.network))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "10.0.0/8",
        "010.0.0.0/8",
        "fe80::1%eth0/64",
        "::/129",
        "10.0.0.0/ 8",
        " 10.0.0.0/8",
        "10.0.0.0/8/8",
        "10.0.0.0/255.0.0.0",
    ],
)
def test_what_go_does_not_parse_is_refused_and_named(text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        net.parse_interface(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("ip", "private"),
    [
        ("10.0.0.1", True),
        ("172.15.255.255", False),
        ("172.16.0.0", True),
        ("172.31.255.255", True),
        ("172.32.0.0", False),
        ("192.168.255.1", True),
        ("100.64.0.1", False),
        ("203.0.113.1", False),
        ("fd00::1", True),
        ("fd01::1", False),
        ("fc00::1", False),
        ("2001:db8::1", False),
        ("::ffff:10.0.0.1", True),
    ],
)
def test_private_is_what_every_agent_agrees_on(ip: str, private: bool) -> None:
    assert net.is_private(ip) is private
    assert net.is_public(ip) is not private
    assert not net.is_public("")


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "224.0.0.5", "ff02::1"])
def test_local_addresses_identify_nobody(ip: str) -> None:
    assert net.is_local(ip)
    assert not net.is_local("10.0.0.1")
    assert not net.is_local("239.1.1.1")
