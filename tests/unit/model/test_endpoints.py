from __future__ import annotations

import pytest

from kilo.model.endpoints import unusable_endpoint


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("0.0.0.0", "an unspecified address"),
        ("0.1.2.3", "an unspecified address"),
        ("::", "an unspecified address"),
        ("127.0.0.1", "a loopback address"),
        ("127.255.255.255", "a loopback address"),
        ("::1", "a loopback address"),
        ("169.254.0.1", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("fe80::1%eth0", "a link-local address"),
        ("febf::1", "a link-local address"),
        ("224.0.0.1", "a multicast address"),
        ("239.255.255.255", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("::ffff:0.0.0.0", "an unspecified address"),
        ("::ffff:127.0.0.1", "a loopback address"),
        ("::ffff:169.254.1.1", "a link-local address"),
        ("::ffff:224.0.0.1", "a multicast address"),
    ],
)
def test_endpoint_without_a_host_is_unusable(address: str, kind: str) -> None:
    assert unusable_endpoint(address) == f"{address} is {kind}"


@pytest.mark.parametrize(
    "address",
    [
        "1.0.0.0",
        "10.0.0.1",
        "126.255.255.255",
        "128.0.0.1",
        "169.253.255.255",
        "203.0.113.7",
        "223.255.255.255",
        "240.0.0.1",  # some clouds give these to nodes
        "255.255.255.254",
        "::2",
        "2001:db8::7",
        "fd00::1",
        "fec0::1",
        "fe7f::1",
        "2001:db8::7%eth0",
        "::ffff:203.0.113.7",
    ],
)
def test_endpoint_of_a_host_is_usable(address: str) -> None:
    assert unusable_endpoint(address) == ""


@pytest.mark.parametrize("text", ["", "example.com", "203.0.113.7:51820", "1.2.3"])
def test_endpoint_that_is_no_address_is_unusable(text: str) -> None:
    assert unusable_endpoint(text) == f"{text!r} is not an IP address"
