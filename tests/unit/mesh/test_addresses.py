from __future__ import annotations

from typing import Any

import pytest

from kilo.mesh.addresses import (
    HostAddresses,
    assigned_here,
    cilium_address,
    detect,
    steady,
    underlay_mtu,
    withheld,
)
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
    links: Any = {"eth0": ("10.0.0.9/24",), "eth1": ("10.0.0.5/24",), "bond0": ("10.0.0.1/24",)}
    before = host(("10.0.0.5",), **links)
    silent = host(default="", **links)
    assert detect(silent).private == "10.0.0.1/24"
    assert detect(steady(silent, before)).private == "10.0.0.5/24"
    assert detect(steady(silent, host(**links))).private == "10.0.0.9/24"
    assert steady(silent, None) == silent
    moved = host(("10.0.0.9",), default="eth1", **links)
    assert steady(moved, before) == moved, "what is said counts"
    assert steady(host(default="", eth1=("10.0.0.5/24",)), before).default_link == "", "eth0 is gone"


PUBLIC = Link("eth0", 2, 1500, addresses=("203.0.113.1/24",))
IPVS = Link("kube-ipvs0", 3, 1500, "dummy", False, ("10.233.0.1/32", "198.51.100.9/32"))
DOCKER = Link("docker0", 4, 1500, "bridge", True, ("172.17.0.1/16",), carrier=False)
LAN = Link("eth1", 5, 1500, addresses=("10.7.0.1/24",))


def with_links(*links: Link, **facts: Any) -> HostFacts:
    return HostFacts("key", links=links, **({"default_link": "eth0"} | facts))


@pytest.mark.parametrize(
    "link",
    [
        IPVS,
        DOCKER,
        Link("eth1", 3, 1500, "", False, ("10.7.0.1/24",)),
        Link("eth1", 3, 1500, "", True, ("10.7.0.1/24",), carrier=False),
        Link("anycast", 3, 1500, "dummy", True, ("10.7.0.1/32",)),
        Link("guests", 3, 1500, "bridge", True, ("192.168.122.1/24",)),
        Link("br-0a1b2c3d4e5f", 3, 1500, "bridge", True, ("172.18.0.1/16",), uplink=True),
        Link("cni0", 3, 1500, "bridge", True, ("10.42.0.1/24",)),
        Link("flannel.1", 3, 1450, "vxlan", True, ("10.42.0.0/32",)),
        Link("flannel-wg", 3, 1420, "wireguard", True, ("10.42.0.0/32",)),
        Link("vxlan.calico", 3, 1450, "vxlan", True, ("10.244.3.0/32",)),
        Link("tunl0", 3, 1480, "ipip", True, ("10.244.3.1/32",)),
        Link("cilium_host", 3, 1500, "veth", True, ("10.0.1.7/32",)),
        Link("ovn-k8s-mp0", 3, 1400, "openvswitch", True, ("10.128.0.2/23",)),
        Link("vethab12", 3, 1500, "veth", True, ("10.2.1.1/32",)),
    ],
    ids=lambda link: link.name,
)
def test_internal_ip_on_link_of_no_lan_is_withheld_and_named(link: Link) -> None:
    facts = with_links(PUBLIC, link)
    assert detect(facts, pod_cidr="10.2.1.0/24") == HostAddresses("", "203.0.113.1/24")
    assert [(w.interface, w.link) for w in withheld(facts, (), "10.2.1.0/24")] == [
        (link.addresses[0], link.name)
    ]


@pytest.mark.parametrize(
    "link",
    [
        LAN,
        Link("br0", 3, 1500, "bridge", True, ("10.7.0.1/24",), uplink=True),
        Link("bond0", 3, 1500, "bond", True, ("10.7.0.1/24",)),
        Link("eth0.7", 3, 1500, "vlan", True, ("10.7.0.1/24",)),
        Link("vx7", 3, 1450, "vxlan", True, ("10.7.0.1/24",)),
        Link("ens10", 3, 1450, "", True, ("10.7.0.1/32",)),
        Link("wg0", 3, 1420, "wireguard", True, ("10.7.0.1/24",)),
    ],
    ids=lambda link: link.name,
)
def test_internal_ip_on_lan_is_found_beside_service_and_container_links(link: Link) -> None:
    assert detect(with_links(PUBLIC, IPVS, DOCKER, link)).private == link.addresses[0]


def test_internal_ip_on_default_link_is_used_whatever_the_link() -> None:
    for name, kind in (("br0", "bridge"), ("cni0", "bridge"), ("eth0", "")):
        link = Link(name, 3, 1500, kind, True, ("10.7.0.1/24",), carrier=False)
        assert detect(with_links(link, default_link=name), pod_cidr="10.7.0.0/16").private == "10.7.0.1/24"


def test_internal_ip_that_the_name_resolves_to_is_withheld_on_dummy() -> None:
    """A resolver may answer with every address of the host."""
    names = ("172.17.0.1", "10.233.0.1", "10.7.0.1")
    assert detect(with_links(PUBLIC, IPVS, DOCKER, LAN, hostname_ips=names)).private == "10.7.0.1/24"
    assert detect(with_links(PUBLIC, IPVS, DOCKER, hostname_ips=names)).private == ""


def test_address_on_two_links_counts_where_one_is_fit() -> None:
    floating = Link("a-dummy", 9, 1500, "dummy", True, ("10.7.0.1/32",))
    assert detect(with_links(PUBLIC, floating, LAN)).private == "10.7.0.1/24"


def test_secondary_address_comes_last() -> None:
    lan = Link("eth0", 2, 1500, addresses=("10.7.0.1/32", "10.7.0.9/24", "203.0.113.1/32", "203.0.113.9/24"))
    assert detect(with_links(lan)) == HostAddresses("10.7.0.9/24", "203.0.113.9/24")
    public = Link("eth0", 2, 1500, addresses=("10.7.0.1/32", "203.0.113.9/24"))
    assert detect(with_links(public)).private == "10.7.0.1/32", "there is no other"
    other = Link("eth1", 3, 1500, addresses=("10.8.0.9/24",))
    assert detect(with_links(public, other)).private == "10.8.0.9/24"
    loopback = Link("lo", 1, 65536, addresses=("10.1.1.1/32",))
    assert detect(with_links(PUBLIC, loopback, other)).private == "10.8.0.9/24"
    names = ("10.7.0.1", "10.7.0.9")
    assert detect(with_links(lan, hostname_ips=names)).private == "10.7.0.9/24"
    dhcp = Link("eth0", 2, 1500, addresses=("fd00::1/128", "fd00::2:0:0:1/64"))
    assert detect(with_links(dhcp)).private == "fd00::1/128", "in IPv6 this is the host's"


def test_endpoint_is_not_on_links_of_services() -> None:
    """kube-proxy gives kube-ipvs0 the addresses of load balancers, too, the same on every node."""
    lan = Link("eth0", 2, 1500, addresses=("10.7.0.1/24",))
    assert detect(with_links(lan, IPVS)) == HostAddresses("10.7.0.1/24", "10.7.0.1/24")
    up = Link("kube-dummy-if", 3, 1500, "dummy", True, ("198.51.100.9/32",))
    assert detect(with_links(lan, up)).public == "10.7.0.1/24"
    own = Link("anycast", 3, 1500, "dummy", True, ("198.51.100.9/32",))
    assert detect(with_links(lan, own)).public == "198.51.100.9/32"
    assert detect(with_links(IPVS, DOCKER)) == HostAddresses("", "")


def test_internal_cidr_narrower_than_a_private_block_means_any_link() -> None:
    facts = with_links(PUBLIC, IPVS, DOCKER)
    assert detect(facts, ("10.233.0.0/18",)).private == "10.233.0.1/32"
    assert detect(facts, ("172.17.0.0/16",)).private == "172.17.0.1/16"
    assert detect(facts, ("10.0.0.0/8", "172.16.0.0/12")).private == ""
    assert detect(with_links(PUBLIC, IPVS, LAN), ("10.233.0.0/18", "10.7.0.0/16")).private == "10.7.0.1/24"
