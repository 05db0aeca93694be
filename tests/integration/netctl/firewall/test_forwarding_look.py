"""What the host's firewall does to pods, by the look at its rules, and as packets see it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kilo.netctl.firewall.choice import Kind
from kilo.netctl.firewall.forwarding import Blocked, Pods
from kilo.netctl.firewall.forwarding_look import ForwardingLook
from tests.integration.netctl.firewall.hosts import (
    BRIEF,
    KNOWN,
    PATIENT,
    POD,
    PROGRAMS,
    Hosts,
    Namespace,
    hosts,
    source_seen,
)

CIDR, CIDR6 = "10.2.0.0/24", "2001:db8:2::/64"
DEVICES = frozenset(("pod", "kube-bridge"))
WIREGUARD = frozenset(("outside",))
"""The device by which the test reaches the pods of the other node."""

Ways = tuple[bool, bool]
BOTH, OUTWARD, INWARD, NONE = (True, True), (True, False), (False, True), (False, False)

IPTABLES: list[tuple[str, Ways]] = [
    ("-P FORWARD ACCEPT", NONE),
    ("-P FORWARD DROP", BOTH),
    ("-A FORWARD -j REJECT", BOTH),
    ("-P FORWARD DROP; -A FORWARD -s 10.2.0.0/24 -j ACCEPT", INWARD),
    ("-P FORWARD DROP; -A FORWARD -d 10.2.0.0/24 -j ACCEPT", OUTWARD),
    ("-P FORWARD DROP; -A FORWARD -s 10.2.0.0/16 -j ACCEPT", NONE),
    ("-P FORWARD DROP; -A FORWARD -s 10.2.0.0/16 -d 10.2.0.0/16 -j ACCEPT", NONE),
    ("-P FORWARD DROP; -A FORWARD -s 10.2.0.128/25 -j ACCEPT; -A FORWARD -d 10.2.7.0/24 -j ACCEPT", BOTH),
    ("-P FORWARD DROP; -A FORWARD -i pod -j ACCEPT; -A FORWARD -o pod -j ACCEPT", NONE),
    ("-P FORWARD DROP; -A FORWARD -i docker0 ! -o docker0 -j ACCEPT; -A FORWARD -i docker0 -j ACCEPT", BOTH),
    ("-P FORWARD DROP; -A FORWARD ! -i docker0 -j ACCEPT", NONE),
    ("-P FORWARD DROP; -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", BOTH),
    ("-P FORWARD DROP; -A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT", NONE),
    ("-P FORWARD DROP; -A FORWARD -m state --state ESTABLISHED -j ACCEPT", BOTH),
    ("-P FORWARD DROP; -A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT", BOTH),
    ("-P FORWARD DROP; -A FORWARD -p tcp -j ACCEPT", BOTH),
    ("-P FORWARD DROP; -A FORWARD -m comment --comment all -j ACCEPT", NONE),
    ("-N MINE; -P FORWARD DROP; -A FORWARD -j MINE; -A MINE -j RETURN; -A MINE -j ACCEPT", BOTH),
    (
        "-N MINE; -P FORWARD DROP; -A FORWARD -j MINE; -A MINE -i pod -j ACCEPT; -A MINE -o pod -j ACCEPT",
        NONE,
    ),
    ("-N MINE; -A FORWARD -j MINE; -A MINE -d 10.9.0.0/16 -j RETURN; -A MINE -i pod -j DROP", OUTWARD),
    ("-N MINE; -P FORWARD DROP; -A FORWARD -g MINE; -A FORWARD -j ACCEPT", BOTH),
    ("-N MINE; -A FORWARD -g MINE; -A FORWARD -j DROP", NONE),
    ("-N MINE; -P FORWARD DROP; -A FORWARD -i eth7 -j MINE; -A MINE -j ACCEPT", BOTH),
]
NFT: list[tuple[str, Ways]] = [
    ("", NONE),
    ("drop", BOTH),
    ("ct state established,related accept; drop", BOTH),
    ("ct state new accept; drop", NONE),
    ("ct state vmap { established : accept, related : accept, invalid : drop }; drop", BOTH),
    ("ip saddr 10.2.0.0/24 accept; drop", INWARD),
    ("ip daddr 10.2.0.0/24 accept; drop", OUTWARD),
    ("ip saddr 10.2.0.0/20 accept; drop", NONE),
    ("ip saddr != 10.2.0.0/24 accept; drop", OUTWARD),
    ("ip6 saddr ::/0 accept; meta nfproto ipv6 accept; tcp dport 22 accept; drop", BOTH),
    ("meta nfproto ipv4 accept; drop", NONE),
    ('iifname "pod" accept; oifname "pod" accept; drop', NONE),
    ('iifname "docker0" accept; oifname "docker0" accept; drop', BOTH),
    ("meta mark & 0x4000 == 0x4000 accept; log; counter; drop", BOTH),
    ("meta mark set 0x20000; meta mark & 0x20000 == 0x20000 accept; drop", NONE),
    ("goto sub; drop", NONE),
    ("jump sub; drop", BOTH),
    ('iifname "pod" reject', OUTWARD),
]


@pytest.fixture(scope="module")
def wired() -> Iterator[Hosts]:
    with hosts() as made:
        yield made


def ways(found: list[Blocked]) -> Ways:
    return any(b.outward for b in found), any(b.inward for b in found)


def look(host: Namespace, cidr: str = CIDR) -> list[Blocked]:
    def read() -> list[Blocked]:
        looking = ForwardingLook()
        try:
            return looking.blocked(Pods(cidr, DEVICES, WIREGUARD))
        finally:
            looking.close()

    return host.call(read)


def lost(wired: Hosts, expected: Ways) -> Ways:
    """Which packets do not arrive: from the pod to the other node's, and back."""
    sent = source_seen(wired.pod, POD, wired.outside, KNOWN, BRIEF if expected[0] else PATIENT)
    answered = source_seen(wired.outside, KNOWN, wired.pod, POD, BRIEF if expected[1] else PATIENT)
    return not sent, not answered


@pytest.mark.parametrize(("commands", "expected"), IPTABLES)
def test_forward_of_iptables_is_judged_as_packets_see_it(
    wired: Hosts, kind: Kind, commands: str, expected: Ways
) -> None:
    program = PROGRAMS[kind][0]
    try:
        for command in commands.split("; "):
            wired.host.run(program, *command.split())
        found = look(wired.host)
        assert ways(found) == expected
        assert lost(wired, expected) == expected
    finally:
        for command in ("-P FORWARD ACCEPT", "-F", "-X"):
            wired.host.run(program, *command.split())
    assert {b.iptables for b in found} <= {kind}


@pytest.mark.parametrize(("rules", "expected"), NFT)
def test_forward_of_other_nftables_is_judged_as_packets_see_it(
    wired: Hosts, rules: str, expected: Ways
) -> None:
    body = rules.replace("; ", "\n")
    chain = f"chain every {{\ntype filter hook forward priority 5;\n{body}\n}}"
    try:
        wired.host.run("nft", "-f", "-", text=f"table inet mine {{\nchain sub {{\ncounter\n}}\n{chain}\n}}\n")
        found = look(wired.host)
        assert ways(found) == expected
        assert lost(wired, expected) == expected
    finally:
        wired.host.run("nft", "add table inet mine; delete table inet mine")


def test_policy_of_another_table_is_named_with_the_command_that_opens_it(wired: Hosts) -> None:
    try:
        policy = "add chain inet f fw { type filter hook forward priority 0; policy drop; }"
        wired.host.run("nft", f"add table inet f; {policy}")
        (found,) = look(wired.host)
        assert (found.where, found.by_policy) == ("chain fw of nftables' table inet f", True)
        wired.host.run(*f"{found.insert} ip saddr {CIDR} accept".split())
        assert ways(look(wired.host)) == INWARD
        assert ways(look(wired.host, CIDR6)) == BOTH
    finally:
        wired.host.run("nft", "add table inet f; delete table inet f")


def test_policy_of_the_other_ip_version_is_not_about_these_pods(host: Namespace, kind: Kind) -> None:
    host.run(PROGRAMS[kind][1], "-P", "FORWARD", "DROP")
    assert look(host) == []
    assert ways(look(host, CIDR6)) == BOTH
    host.run(PROGRAMS[kind][1], "-A", "FORWARD", "-s", "2001:db8::/32", "-j", "ACCEPT")
    assert look(host, CIDR6) == []


def test_tables_that_are_not_in_use_stay_so(host: Namespace) -> None:
    assert look(host) == []
    assert host.run("cat", "/proc/net/ip_tables_names") == ""
    assert host.run("nft", "list", "tables") == ""


def test_nftables_that_did_not_change_are_not_read_again(host: Namespace) -> None:
    host.run(PROGRAMS["nftables"][0], "-P", "FORWARD", "DROP")
    looking = ForwardingLook()
    pods = Pods(CIDR, DEVICES, WIREGUARD)
    host.at_end.callback(looking.close)
    first = host.call(lambda: looking.blocked(pods))
    netlink = looking._netlink
    assert netlink is not None
    before = netlink._sequence
    assert host.call(lambda: looking.blocked(pods)) == first
    assert netlink._sequence - before == 1
