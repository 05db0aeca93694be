"""Rules as the kernel gives them, reduced to the pods' new flows that they match."""

from __future__ import annotations

import struct

import pytest

from kilo.netctl.firewall.forwarding import Pods, Rule
from kilo.netctl.firewall.forwarding_rules import of_entry, of_form
from kilo.netctl.firewall.layout import FAMILIES, Entry, Match, addresses, comment, passing, set_match
from kilo.netctl.firewall.nft_expressions import Expression, Verdict, form_of, in_network, in_set, verdict
from kilo.netctl.firewall.nft_expressions import Rule as NftRule
from kilo.netctl.firewall.nft_expressions import passing as nft_passing

PODS = Pods("10.2.0.0/24", frozenset(("kube-bridge",)), frozenset(("kilo0",)))
PODS6 = Pods("2001:db8:2::/64", frozenset(("kube-bridge",)), frozenset(("kilo0",)))
ANY = addresses(FAMILIES[4], "src", b"")
OWN = bytes((10, 2, 0, 0, 24))
OWN6 = bytes.fromhex("20010db8000200000000000000000000") + bytes((64,))


def states(mask: int, inverted: bool = False) -> Match:
    """As iptables packs ``-m conntrack --ctstate``."""
    return Match("conntrack", 3, bytes(146) + struct.pack("@HHH", 1, int(inverted), mask) + bytes(12))


@pytest.mark.parametrize(
    ("matches", "fit"),
    [
        ((), "all"),
        ((comment("all"),), "all"),
        ((states(8 | 2),), "all"),
        ((states(2 | 4),), "none"),
        ((states(2 | 4, inverted=True),), "all"),
        ((states(8, inverted=True),), "none"),
        ((Match("state", 0, struct.pack("@I", 6)),), "none"),
        ((Match("multiport", 1, b""),), "none"),
        ((set_match(7, "src"),), "some"),
        ((Match("nobody-knows", 0, b""),), "some"),
        ((set_match(7, "src"), Match("multiport", 1, b"")), "none"),
        ((Match("mark", 1, struct.pack("@IIB3x", 0x4000, 0x4000, 0)),), "none"),
        ((Match("mark", 1, struct.pack("@IIB3x", 0x4000, 0x4000, 1)),), "some"),
        ((Match("mark", 1, struct.pack("@IIB3x", 0x20000, 0x20000, 0)),), "some"),
        ((Match("connmark", 1, b""),), "some"),
        ((Match("policy", 0, b""),), "some"),
        ((Match("addrtype", 1, struct.pack("@HHI", 0, 4, 0)),), "none"),
        ((Match("addrtype", 1, struct.pack("@HHI", 0, 4, 2)),), "some"),
    ],
)
def test_entry_fits_as_its_matches_do(matches: tuple[Match, ...], fit: str) -> None:
    assert of_entry(Entry(ANY, matches, "ACCEPT"), PODS) == Rule(fit, fit, "accept")  # type: ignore[arg-type]


def test_entry_of_the_pod_cidr_fits_its_own_direction() -> None:
    assert of_entry(Entry(addresses(FAMILIES[4], "src", OWN), (), "DROP"), PODS) == Rule(
        "all", "none", "drop"
    )
    inward = Entry(addresses(FAMILIES[6], "dst", OWN6), (), "REJECT")
    assert of_entry(inward, PODS6) == Rule("none", "all", "drop")


def test_entry_by_protocol_fits_nothing() -> None:
    assert of_entry(Entry(passing(FAMILIES[4], "in", "kube-bridge", 6), (), "ACCEPT"), PODS).outward == "none"


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("RETURN", "return"),
        ("", ""),
        ("@1234", "@1234"),
        ("REJECT", "drop"),
        ("NFQUEUE.3", "accept"),
        ("LOG", ""),
    ],
)
def test_entry_target_is_what_becomes_of_the_packet(target: str, found: str) -> None:
    assert of_entry(Entry(ANY, (), target), PODS).target == found


@pytest.mark.parametrize(
    ("conditions", "decision", "found"),
    [
        ((), "drop", Rule("all", "all", "drop")),
        (in_network(4, "src", OWN), "accept", Rule("all", "none", "accept")),
        (in_network(4, "dst", bytes((10, 2, 0, 0, 15))), "accept", Rule("some", "all", "accept")),
        (in_set(4, "src", "s"), "accept", Rule("some", "some", "accept")),
        (nft_passing("in", "kube-bridge"), "accept", Rule("all", "none", "accept")),
        (nft_passing("out", "kilo0"), "accept", Rule("some", "none", "accept")),
        ((Expression("nobody-knows"),), "return", Rule("some", "some", "return")),
        ((Expression("limit"),), "accept", Rule("none", "none", "accept")),
    ],
)
def test_form_fits_as_its_expressions_do(
    conditions: tuple[Expression, ...], decision: Verdict, found: Rule
) -> None:
    assert of_form(form_of(NftRule((*conditions, verdict(decision)))), PODS) == found


def test_form_of_ipv6_compares_its_own_addresses() -> None:
    rule = NftRule((*in_network(6, "src", OWN6), verdict("accept")))
    assert of_form(form_of(rule), PODS6) == Rule("all", "none", "accept")


def test_form_with_verdicts_in_a_set_may_accept() -> None:
    assert of_form(form_of(NftRule(in_set(4, "src", "verdicts"))), PODS) == Rule("some", "some", "accept")
