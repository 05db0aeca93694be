"""Flows that have an address which is no longer WireGuard's."""

from __future__ import annotations

import pytest

from tests.integration.netctl.conntrack.watched import Stream, Watched
from tests.integration.netctl.firewall.hosts import HOST, KNOWN, POD, STRANGER, STRANGER6, Hosts


@pytest.mark.usefixtures("few")
def test_what_has_an_address_that_wireguard_had(wired: Hosts) -> None:
    """Rules of the host's own bind flows to it, in ways that the kernel does not end with the address."""
    host = wired.host
    host.ip("link add kilo0 type veth peer name far\naddr add 10.4.0.1/16 dev kilo0\nlink set kilo0 up")
    host.run(
        *("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-d", STRANGER),
        *("-j", "SNAT", "--to-source", "10.4.0.1"),
    )
    wired.outside.ip(f"route add 10.4.0.0/16 via {HOST}")
    watched = Watched(host, wireguard="kilo0")
    with Stream(wired, STRANGER) as stream, Stream(wired, KNOWN) as bystander:
        assert (stream.seen(), bystander.seen()) == ("10.4.0.1", POD)
        before = watched.entries()
        host.ip("addr add 10.4.0.1/32 dev lo\naddr del 10.4.0.1/16 dev kilo0")
        assert watched.after_pass() == 0, "the host still has it"
        host.ip("addr add 10.4.0.1/16 dev kilo0")
        assert watched.after_pass() == 0
        host.ip("addr del 10.4.0.1/32 dev lo\naddr del 10.4.0.1/16 dev kilo0")
        host.run("iptables-nft", "-t", "nat", "-F")
        assert watched.after_pass() == 1
        assert (stream.seen(), bystander.seen()) == (POD, POD)
        assert len(before & watched.entries()) == len(before) - 1


@pytest.mark.usefixtures("few")
def test_what_has_an_ipv6_address_that_wireguard_had(wired: Hosts) -> None:
    host = wired.host
    host.ip("link add kilo0 type veth peer name far\naddr add fd00:4::1/64 dev kilo0\nlink set kilo0 up")
    watched = Watched(host, wireguard="kilo0")
    for source in ("fd00:4::1", "fd00:4::2"):
        ports = ("--sport", "1", "--dport", "2", "-t", "100")
        host.run("conntrack", "-I", "-p", "udp", "-s", source, "-d", STRANGER6, *ports)
    host.ip("addr del fd00:4::1/64 dev kilo0")
    assert watched.after_pass() == 1
    assert [entry.split()[1] for entry in watched.entries()] == ["src=fd00:4::2"]


def test_a_device_that_vanishes_for_a_moment_has_lost_nothing(wired: Hosts) -> None:
    host = wired.host
    make = "link add kilo0 type veth peer name far\naddr add 10.4.0.1/16 dev kilo0\nlink set kilo0 up"
    host.ip(make)
    watched = Watched(host, wireguard="kilo0")
    ports = ("--sport", "1", "--dport", "2", "-t", "100")
    host.run("conntrack", "-I", "-p", "udp", "-s", "10.4.0.1", "-d", STRANGER, *ports)
    before = watched.entries()
    host.ip("link delete kilo0")
    assert watched.after_pass() == 0
    host.ip(make)
    assert watched.after_pass() == 0
    assert watched.entries() == before
    host.ip("addr del 10.4.0.1/16 dev kilo0")
    assert watched.after_pass() == 1
