from __future__ import annotations

import pytest

from kilo.model.routable import unroutable


@pytest.mark.parametrize(
    "network",
    ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "200.0.0.0/6", "8.0.0.0/7", "::/0", "2000::/3", "fc00::/6"],
)
def test_network_as_wide_as_a_default_route_is_unroutable(network: str) -> None:
    assert unroutable(network).startswith(f"{network} is as wide as a default route")


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        ("127.0.0.1/32", "loopback"),
        ("169.254.169.254/32", "link-local"),
        ("224.0.0.0/24", "multicast"),
        ("240.0.0.0/8", "reserved"),
        ("255.255.255.255/32", "reserved"),
        ("::1/128", "loopback"),
        ("::/128", "unspecified"),
        ("fe80::/64", "link-local"),
        ("ff02::/16", "multicast"),
        ("::ffff:127.0.0.1/128", "loopback"),
    ],
)
def test_network_of_special_addresses_is_unroutable(network: str, kind: str) -> None:
    assert "is not to be routed" in unroutable(network) and kind in unroutable(network)


@pytest.mark.parametrize(
    "network",
    ["10.0.0.0/8", "10.1.2.3/8", "172.16.0.0/12", "203.0.113.7/32", "fd00::/8", "fc00::/7", "2001:db8::/32"],
)
def test_network_of_ordinary_addresses_is_routable(network: str) -> None:
    assert unroutable(network) == ""
