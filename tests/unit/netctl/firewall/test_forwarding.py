"""Rules reduced to what they do to pods, and what a person reads of it."""

from __future__ import annotations

from kilo.netctl.firewall.forwarding import Blocked, Fits, Pods, Rule, describe, judge

PODS = Pods("10.2.0.0/24", frozenset(("kube-bridge",)), frozenset(("kilo0",)))
LEGACY = Blocked("FORWARD of legacy iptables", True, True, True, "iptables-legacy -I FORWARD", "legacy")
OTHER = Blocked("chain fw of nftables' table inet f", False, True, False, "nft insert rule inet f fw")


def test_address_of_a_network_around_all_pods_fits_both_ways() -> None:
    fits = Fits(PODS)
    fits.address("src", 10 << 24, (11 << 24) - 1, inverted=False)
    assert (fits.outward, fits.inward) == ("all", "some")
    fits.address("src", 0, (1 << 32) - 1, inverted=False)
    assert (fits.outward, fits.inward) == ("all", "some")


def test_device_by_name_is_the_pods_own_or_the_mesh() -> None:
    fits = Fits(PODS)
    fits.device("in", "kilo0", inverted=False)
    assert (fits.outward, fits.inward) == ("none", "some")


def test_chains_that_jump_to_one_another_many_times_are_read_once() -> None:
    read: list[str] = []

    def rules_of(chain: str) -> list[Rule]:
        read.append(chain)
        return [Rule("all", "all", f"@{int(chain) + 1}")] * 10 if int(chain) < 10 else []

    assert judge(rules_of, "0", drops_rest=True) == (True, True, True)
    assert len(read) == 2 * 11


def test_goto_that_falls_through_takes_the_policy() -> None:
    chains = {"base": [Rule("all", "all", "@@empty"), Rule("all", "all", "accept")], "empty": []}
    assert judge(chains.__getitem__, "base", drops_rest=True) == (True, True, True)
    chains["base"][1] = Rule("all", "all", "drop")
    assert judge(chains.__getitem__, "base", drops_rest=False) == (False, False, False)


def test_legacy_chain_is_named_with_the_flag_and_the_commands() -> None:
    assert describe([LEGACY], PODS.cidr, "legacy") == (
        "FORWARD of legacy iptables drops what pods send (from 10.2.0.0/24) and what is sent to pods "
        "(to 10.2.0.0/24): its policy is drop, and no rule accepts it; give --iptables-forward-rules, or "
        "accept it there: iptables-legacy -I FORWARD -s 10.2.0.0/24 -j ACCEPT, iptables-legacy -I FORWARD "
        "-d 10.2.0.0/24 -j ACCEPT"
    )


def test_flag_that_would_not_help_is_not_named() -> None:
    assert "--iptables-forward-rules" not in describe([LEGACY], PODS.cidr, "nftables")
    assert "--iptables-forward-rules" not in describe([LEGACY], PODS.cidr, "")
    assert describe([OTHER], PODS.cidr, "nftables") == (
        "chain fw of nftables' table inet f drops what pods send (from 10.2.0.0/24): a rule drops it; "
        "accept it there: nft insert rule inet f fw ip saddr 10.2.0.0/24 accept"
    )
    assert describe([], PODS.cidr, "legacy") == ""
