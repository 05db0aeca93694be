"""The firewall against the kernel's tables: what is there afterwards, and what was not touched."""

from __future__ import annotations

import os
from functools import partial

import pytest

from kilo.errors import TemporaryError
from kilo.log import Logger
from kilo.netctl.firewall import xtables
from kilo.netctl.firewall.layout import FAMILIES, Entry, addresses
from kilo.netctl.firewall.rules import Chain
from kilo.netctl.firewall.tables import Tables
from kilo.netctl.reconcile import Outcome
from tests.integration.netctl.capability import without_net_admin
from tests.integration.netctl.firewall import samples
from tests.integration.netctl.firewall.hosts import (
    PROGRAMS,
    Agent,
    Namespace,
    add_foreign_rules,
    entries,
    errors,
    go_rules,
    policy,
)
from tests.integration.netctl.firewall.samples import ALL, SAMPLE, SETS

saved, foreign = partial(samples.saved, kind="legacy"), partial(samples.foreign, kind="legacy")


def ours(host: Namespace) -> list[str]:
    return [line for line in saved(host) if "KILO-" in line or '"Kilo: ' in line]


def sets(host: Namespace) -> list[str]:
    return sorted(host.run("ipset", "list", "-n").split())


@pytest.mark.parametrize("with_sets", SETS)
def test_there_and_back_again_leaves_the_rules_of_others_as_they_were(
    host: Namespace, with_sets: bool
) -> None:
    add_foreign_rules(host, "legacy")
    before = saved(host)
    agent = Agent(host, with_sets)
    assert agent.resync() == []
    assert saved(host) == before
    agent.plan(ALL, *SAMPLE)
    assert foreign(host) == before
    agent.plan(
        policy(guard=False, forward=True), *entries(masquerade_to="198.51.100.0/24"), without=(SAMPLE[0],)
    )
    assert foreign(host) == before
    assert not errors(agent.clean_up())
    assert saved(host) == before
    assert sets(host) == ["others"]


@pytest.mark.parametrize("with_sets", SETS)
def test_take_over_from_the_go_agent(host: Namespace, with_sets: bool) -> None:
    add_foreign_rules(host, "legacy")
    before = saved(host)
    host.run("iptables-legacy-restore", "--noflush", text=go_rules(60))
    assert len(ours(host)) > 200
    assert foreign(host) == before
    agent = Agent(host, with_sets)
    assert agent.resync() == []
    assert not errors(agent.plan(ALL, *SAMPLE))
    assert foreign(host) == before
    fresh = Namespace()
    try:
        other = Agent(fresh, with_sets)
        other.plan(ALL, *SAMPLE)
        assert sorted(ours(host)) == sorted(ours(fresh))
    finally:
        fresh.close()
    assert agent.resync() == []


@pytest.mark.parametrize("with_sets", SETS)
def test_a_second_pass_finds_nothing_to_do_and_neither_does_a_second_agent(
    host: Namespace, with_sets: bool
) -> None:
    agent = Agent(host, with_sets)
    assert not errors(agent.plan(ALL, *SAMPLE))
    after = saved(host)
    assert agent.step() == agent.resync() == agent.step() == agent.resync() == []
    second = Agent(host, with_sets)
    assert second.plan(ALL, *SAMPLE) == []
    assert saved(host) == after


@pytest.mark.parametrize("with_sets", SETS)
def test_iptables_reads_and_writes_our_rules_as_they_are(host: Namespace, with_sets: bool) -> None:
    """Saved, restored by the tools and read again, they are equal bit by bit."""
    agent = Agent(host, with_sets)
    agent.plan(ALL, *SAMPLE, *entries(no_masquerade_to="fd00::/16", ipip_accept_from="fd00::1/128"))
    for program in PROGRAMS["legacy"]:
        text = host.run(f"{program}-save")
        assert "unsupported" not in text
        host.run(f"{program}-restore", text=text)
    assert agent.resync() == []


def test_the_number_of_rules_does_not_depend_on_the_number_of_nodes(host: Namespace) -> None:
    def networks(first: int, last: int) -> str:
        return " ".join(f"10.{n // 250 + 10}.{n % 250}.0/24" for n in range(first, last))

    agent = Agent(host)
    agent.plan(ALL, *entries(no_masquerade_to=networks(0, 3), forward_accept_to=networks(0, 3)))
    few = saved(host)
    agent.plan(*entries(no_masquerade_to=networks(3, 1000), forward_accept_to=networks(3, 1000)))
    assert saved(host) == few
    assert "Number of entries: 1000" in host.run("ipset", "list", "-t", "kilo-no-masquerade-to-v4")


def test_exceptions_come_before_and_go_after_what_they_are_exceptions_from(host: Namespace) -> None:
    agent = Agent(host)
    agent.plan(ALL)
    keys = [outcome.key for outcome in agent.plan(*SAMPLE)]
    assert keys.index("kilo-no-masquerade-to-v4") < keys.index("kilo-masquerade-from-v4")
    keys = [outcome.key for outcome in agent.plan(without=tuple(SAMPLE))]
    assert keys.index("kilo-no-masquerade-to-v4/surplus") > keys.index("kilo-masquerade-from-v4/surplus")


@pytest.mark.parametrize("with_sets", SETS)
def test_flags_that_changed_while_nobody_ran(host: Namespace, with_sets: bool) -> None:
    first = Agent(host, with_sets)
    first.plan(ALL, *SAMPLE)
    del first
    second = Agent(host, with_sets)
    second.plan(policy(), *entries(masquerade_from="10.9.0.0/24", no_masquerade_to="10.9.0.0/24"))
    text = "\n".join(saved(host)) + host.run("ipset", "save")
    assert "KILO-NAT" in text
    for gone in ("KILO-IPIP", "forwarded", "10.2.0.0", "10.5.0.1", "10.1.0.10", "kilo-forward", "kilo-ipip"):
        assert gone not in text


def test_what_somebody_broke_is_repaired_and_called_a_repair(host: Namespace) -> None:
    agent = Agent(host)
    agent.resync()
    assert not any(outcome.repair for outcome in agent.plan(ALL, *SAMPLE))
    whole, members = ours(host), host.run("ipset", "save", "-sorted")

    def repaired(*command: str) -> set[str]:
        host.run(*command)
        outcomes = agent.resync()
        assert ours(host) == whole
        assert host.run("ipset", "save", "-sorted") == members
        assert all(outcome.repair and not outcome.error for outcome in outcomes)
        return {outcome.key for outcome in outcomes}

    nat, no_masquerade = ("iptables-legacy", "-t", "nat"), "kilo-no-masquerade-to-v4"
    assert repaired(*nat, "-F") == {"nat-v4"}
    assert repaired(*nat, "-D", "KILO-NAT", "2") == {"nat-v4"}
    assert repaired(*nat, "-I", "KILO-NAT", "-j", "ACCEPT") == {"nat-v4"}
    assert repaired("ip6tables-legacy", "-D", "INPUT", "1") == {"filter-v6"}
    assert repaired("iptables-legacy", "-A", "OUTPUT", "-p", "4", "-j", "KILO-IPIP") == {"filter-v4"}
    assert repaired("iptables-legacy", "-N", "KILO-OLD") == {"filter-v4"}
    assert repaired("ipset", "del", no_masquerade, "10.2.1.0/24") == {no_masquerade}
    assert repaired("ipset", "add", no_masquerade, "192.0.2.0/24") == {f"{no_masquerade}/surplus"}
    assert repaired("ipset", "flush", no_masquerade) == {no_masquerade}
    assert repaired("ipset", "create", "kilo-stale-v4", "hash:net") == {"kilo-stale-v4/surplus"}


def test_what_broke_in_the_middle_of_a_pass_is_repaired_in_the_next(host: Namespace) -> None:
    agent = Agent(host)
    agent.plan(ALL, *SAMPLE)
    whole = ours(host)
    host.run("iptables-legacy", "-t", "nat", "-F")
    assert agent.prune_after_a_look() == []
    assert [outcome.key for outcome in agent.step()] == ["nat-v4"]
    assert ours(host) == whole


def test_rules_that_others_put_before_and_after_ours_stay_there(host: Namespace) -> None:
    agent = Agent(host)
    agent.plan(ALL, *SAMPLE)
    for chain in ("INPUT", "FORWARD"):
        host.run("iptables-legacy", "-I", chain, "-s", "192.0.2.1", "-j", "DROP")
        host.run("iptables-legacy", "-A", chain, "-s", "192.0.2.2", "-j", "DROP")
    after = saved(host)
    assert agent.resync() == []
    agent.plan(policy(guard=True, forward=False))
    agent.plan(policy(guard=False, forward=True))
    agent.plan(ALL)
    assert foreign(host) == [line for line in after if line not in ours(host)]
    rules = [line for line in saved(host) if " -A INPUT " in line]
    assert ["192.0.2.1" in rules[0], "192.0.2.2" in rules[1], "KILO-IPIP" in rules[2]] == [True] * 3


def test_sets_that_somebody_made_of_our_names(host: Namespace) -> None:
    name = "kilo-no-masquerade-to-v4"
    host.run("ipset", "create", name, "hash:ip")
    host.run("ipset", "create", "kilo-masquerade-from-v4", "hash:net")
    host.run("ipset", "add", "kilo-masquerade-from-v4", "10.2.0.0/24", "nomatch")
    host.run("ipset", "add", "kilo-masquerade-from-v4", "192.0.2.0/24", "nomatch")
    agent = Agent(host)
    assert not errors(agent.plan(policy(), *SAMPLE))
    assert "hash:net" in host.run("ipset", "list", name)
    assert "nomatch" not in host.run("ipset", "save")
    assert "192.0.2.0" not in host.run("ipset", "save")
    assert agent.resync() == []


def test_no_rules_while_a_set_of_theirs_cannot_be_filled(host: Namespace) -> None:
    """Masquerading without its exceptions would break what the mesh is for."""
    name = "kilo-no-masquerade-to-v4"
    host.run("ipset", "create", name, "hash:ip")
    host.run("iptables-legacy", "-A", "OUTPUT", "-m", "set", "--match-set", name, "src")
    agent = Agent(host)
    agent.resync()
    assert errors(agent.plan(policy(), *SAMPLE)) == [f"{name}: rules still refer to it"]
    assert "KILO-NAT" not in host.run("iptables-legacy", "-t", "nat", "-S")
    assert "KILO-NAT" in host.run("ip6tables-legacy", "-t", "nat", "-S")
    host.run("iptables-legacy", "-F", "OUTPUT")
    assert agent.step() == []
    agent.clock.now += 1
    assert not errors(agent.step())
    assert "KILO-NAT" in host.run("iptables-legacy", "-t", "nat", "-S")


def test_an_error_is_taken_back_when_its_object_is_no_longer_wanted(host: Namespace) -> None:
    name = "kilo-ipip-accept-from-v4"
    host.run("ipset", "create", name, "hash:ip")
    host.run("iptables-legacy", "-A", "OUTPUT", "-m", "set", "--match-set", name, "src")
    agent = Agent(host)
    agent.resync()
    assert len(errors(agent.plan(policy(guard=True)))) == 1
    outcomes = agent.plan(policy(guard=False))
    assert Outcome(name) in outcomes
    assert [outcome.key for outcome in outcomes if outcome.error] == [f"{name}/surplus"]


def test_without_ipset_it_says_so_once(host: Namespace) -> None:
    read, write = os.pipe()
    with open(read) as lines:
        agent = Agent(host, sets=False, log=Logger("netctl", "warn", write))
        agent.resync()
        agent.resync()
        os.close(write)
        assert lines.read().count("no ipset in the kernel") == 1


def test_tables_that_nobody_needs_are_not_made(host: Namespace) -> None:
    agent = Agent(host)
    agent.clean_up()
    assert saved(host) == []
    agent.plan(policy(), *SAMPLE)
    for file in ("ip_tables_names", "ip6_tables_names"):
        assert sorted(host.run("cat", f"/proc/net/{file}").split()) == ["mangle", "nat"]


def test_a_table_that_the_kernel_lacks(host: Namespace) -> None:
    read, write = os.pipe()
    tables = Tables(Logger("netctl", "info", write))
    rule = Entry(addresses(FAMILIES[6], "src", b""), (), "ACCEPT")
    layout = {"INPUT": Chain("first", (rule,))}
    with pytest.raises(xtables.TableMissing, match=r"no table lacking for IPv4 \(module iptable_lacking\)"):
        host.call(lambda: tables.put_right((4, "lacking"), layout, matters=True))
    for _ in range(2):
        host.call(lambda: tables.put_right((6, "lacking"), layout, matters=False))
    assert not tables.differs((6, "lacking"), layout, matters=False)
    os.close(write)
    with open(read) as lines:
        assert lines.read().count("ip6table_lacking") == 2


def test_a_chain_that_others_still_use_is_emptied_and_told(host: Namespace) -> None:
    agent = Agent(host)
    agent.plan(policy(), *SAMPLE)
    host.run("iptables-legacy", "-t", "nat", "-N", "MINE")
    host.run("iptables-legacy", "-t", "nat", "-A", "MINE", "-j", "KILO-NAT")
    assert errors(agent.clean_up()) == ["nat-v4: rules of others still jump to KILO-NAT, now empty"]
    assert [line for line in ours(host) if "-A" in line] == ["[0:0] -A MINE -j KILO-NAT"]
    assert sets(host) == []


def test_no_capability_is_an_error_and_not_an_empty_kernel(host: Namespace) -> None:
    with pytest.raises(TemporaryError, match="Operation not permitted"):
        host.call(lambda: without_net_admin(lambda: xtables.read_table(4, "nat")))
