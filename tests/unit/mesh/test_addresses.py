from __future__ import annotations

from typing import Any

import pytest

from kilo.mesh.addresses import HostAddresses, assigned_here, cilium_address, detect, steady, underlay_mtu
from kilo.model.host import HostFacts, Link


def host(hostname_ips: tuple[str, ...] = (), default: str = "eth0", **links: tuple[str, ...]) -> HostFacts:
    """A host with these links; kilo0, tunl0 and cni0 are those that identify nobody."""
    found = tuple(Link(name, i, 1500, addresses=a) for i, (name, a) in enumerate(links.items(), 2))
    ignored = tuple(name for name in ("kilo0", "tunl0", "cni0") if name in links)
    return HostFacts("key", hostname_ips, found, default, ignored)


LOOPBACK = ("127.0.0.1/8", "::1/128")


@pytest.mark.parametrize(
    ("facts", "private", "public"),
    [
        (host(lo=LOOPBACK, eth0=("10.0.0.1/24", "203.0.113.1/24")), "10.0.0.1/24", "203.0.113.1/24"),
        (host(lo=LOOPBACK, eth0=("10.0.0.1/24",)), "10.0.0.1/24", "10.0.0.1/24"),
        (host(lo=LOOPBACK, eth0=("203.0.113.1/24",)), "", "203.0.113.1/24"),
        (host(lo=LOOPBACK), "", ""),
        # the default route's interface before others, the name's address before both
        (host(eth0=("10.0.0.9/24",), eth1=("10.0.0.1/24",)), "10.0.0.9/24", "10.0.0.9/24"),
        (host(("10.0.0.1",), eth0=("10.0.0.9/24",), eth1=("10.0.0.1/16",)), "10.0.0.1/16", "10.0.0.1/16"),
        (host(("10.0.0.7",), eth0=("10.0.0.9/24",)), "10.0.0.9/24", "10.0.0.9/24"),
        (host(("127.0.1.1",), lo=("127.0.1.1/8",), eth0=("10.0.0.9/24",)), "10.0.0.9/24", "10.0.0.9/24"),
        (
            host(("203.0.113.5",), eth0=("203.0.113.1/24", "10.0.0.9/24"), eth1=("203.0.113.5/24",)),
            "10.0.0.9/24",
            "203.0.113.5/24",
        ),
        # no default route: any interface's
        (host(default="", eth0=("10.0.0.9/24",)), "10.0.0.9/24", "10.0.0.9/24"),
        (host(eth0=(), eth1=("192.168.1.1/24",)), "192.168.1.1/24", "192.168.1.1/24"),
        # IPv4 first, then by text
        (host(eth0=("fd00::1/64", "192.168.0.1/24")), "192.168.0.1/24", "192.168.0.1/24"),
        (host(eth0=("2001:db8::1/64", "203.0.113.1/24")), "", "203.0.113.1/24"),
        (host(eth0=("2001:db8::1/64", "10.0.0.2/24")), "10.0.0.2/24", "2001:db8::1/64"),
        (host(eth0=("10.0.0.2/24", "10.0.0.10/24")), "10.0.0.10/24", "10.0.0.10/24"),
        # what identifies nobody
        (host(eth0=("169.254.1.1/16", "fe80::1/64", "10.0.0.2/24")), "10.0.0.2/24", "10.0.0.2/24"),
        (
            host(
                kilo0=("10.4.0.1/16",), tunl0=("10.2.1.1/32",), cni0=("10.2.1.1/24",), eth0=("10.9.0.2/24",)
            ),
            "10.9.0.2/24",
            "10.9.0.2/24",
        ),
        (host(("10.4.0.1",), kilo0=("10.4.0.1/16",), eth0=("203.0.113.1/24",)), "", "203.0.113.1/24"),
        # private are 10/8, 172.16/12, 192.168/16 and fd00::/16, no more
        (host(eth0=("100.64.0.1/10",)), "", "100.64.0.1/10"),
        (host(eth0=("172.32.0.1/16",)), "", "172.32.0.1/16"),
        (host(eth0=("fd01::1/64",)), "", "fd01::1/64"),
    ],
)
def test_addresses_are_chosen_in_order(facts: HostFacts, private: str, public: str) -> None:
    assert detect(facts) == HostAddresses(private, public)


def test_only_the_internal_cidrs_count_as_private() -> None:
    facts = host(eth0=("10.0.0.1/24", "203.0.113.1/24"), eth1=("192.168.5.1/24",))
    assert detect(facts, ("192.168.0.0/16",)).private == "192.168.5.1/24"
    assert detect(facts, ("192.168.0.0/16", "10.0.0.0/8")).private == "10.0.0.1/24"
    assert detect(facts, ("172.16.0.0/12",)) == HostAddresses("", "203.0.113.1/24")


def test_an_address_is_found_whatever_its_prefix() -> None:
    facts = host(eth0=("10.0.0.1/24",))
    assert assigned_here(facts, "10.0.0.1/32")
    assert not assigned_here(facts, "10.0.0.2/24")
    assert not assigned_here(facts, "")


def test_cilium_speaks_ipv4_alone() -> None:
    facts = host(cilium_host=("fd20::5/128", "10.2.1.77/32"), eth0=("10.0.0.1/24",))
    assert cilium_address(facts) == "10.2.1.77/32"
    assert cilium_address(host(eth0=("10.0.0.1/24",))) == ""


def test_the_underlay_is_the_default_routes_interface() -> None:
    facts = HostFacts("k", links=(Link("a", 1, 9000), Link("b", 2, 1400)), default_link="b")
    assert underlay_mtu(facts) == 1400
    assert underlay_mtu(HostFacts("k")) == 0


def test_silence_gives_a_host_no_other_identity() -> None:
    links: Any = {"eth0": ("10.0.0.9/24",), "eth1": ("10.0.0.5/24",), "docker0": ("10.0.0.1/24",)}
    before = host(("10.0.0.5",), **links)
    silent = host(default="", **links)
    assert detect(silent).private == "10.0.0.1/24"
    assert detect(steady(silent, before)).private == "10.0.0.5/24"
    assert detect(steady(silent, host(**links))).private == "10.0.0.9/24"
    assert steady(silent, None) == silent
    moved = host(("10.0.0.9",), default="eth1", **links)
    assert steady(moved, before) == moved, "what is said counts"
    assert steady(host(default="", eth1=("10.0.0.5/24",)), before).default_link == "", "eth0 is gone"
