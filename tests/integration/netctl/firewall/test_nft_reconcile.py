"""The nftables firewall against the kernel: what is there afterwards, and what was not touched."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import re
import struct
from functools import partial

import pytest

from kilo.netctl.firewall.nft_intervals import CATCH_ALL
from kilo.netctl.firewall.nft_messages import (
    DELCHAIN,
    GROUP,
    NEWGEN,
    NEWTABLE,
    chain_of,
    new_chain,
    new_elements,
    new_table,
)
from kilo.netctl.firewall.nft_messages import Hook as NftHook
from kilo.netctl.firewall.nft_socket import NftSocket
from kilo.netctl.netlink.attributes import attribute
from kilo.netctl.netlink.socket import NETLINK_NETFILTER, Events, Request
from kilo.netctl.reconcile import Outcome
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

OWNER = 2


def nft_agent(host: Namespace, sets: bool = True) -> Agent:
    return Agent(host, sets, kind="nftables")


saved, foreign = partial(samples.saved, kind="nftables"), partial(samples.foreign, kind="nftables")


def ruleset(host: Namespace) -> str:
    """All of it, with the handles of rules, which change if a rule is rewritten."""
    return host.run("nft", "-a", "list", "ruleset")


def own(host: Namespace) -> str:
    return "".join(host.run("nft", "list", "table", family, "kilo") for family in ("ip", "ip6"))


def elements(host: Namespace, name: str = "no-masquerade-to", family: str = "ip") -> set[str]:
    text = host.run("nft", "list", "set", family, "kilo", name)
    found = re.search(r"elements = \{(.*?)\}", text, re.DOTALL)
    return set(re.split(r",\s*", found[1].strip())) if found else set()


def ipsets(host: Namespace) -> list[str]:
    return sorted(host.run("ipset", "list", "-n").split())


def make_host_chains(host: Namespace) -> None:
    """What iptables-nft makes when somebody sets policies."""
    for program in PROGRAMS["nftables"]:
        for chain in ("INPUT", "FORWARD"):
            host.run(program, "-P", chain, "DROP")


@pytest.mark.parametrize("with_sets", SETS)
def test_there_and_back_again_leaves_the_rules_of_others_as_they_were(
    host: Namespace, with_sets: bool
) -> None:
    add_foreign_rules(host, "nftables")
    before, rules = ruleset(host), saved(host)
    agent = nft_agent(host, with_sets)
    assert agent.resync() == []
    assert ruleset(host) == before
    agent.plan(ALL, *SAMPLE)
    assert foreign(host) == rules
    assert sum('"Kilo: ' in line for line in saved(host)) >= 3
    agent.plan(
        policy(guard=False, forward=True), *entries(masquerade_to="198.51.100.0/24"), without=(SAMPLE[0],)
    )
    assert foreign(host) == rules
    assert not errors(agent.clean_up())
    assert ruleset(host) == before
    assert ipsets(host) == ["others"]


def events_of_transactions(events: Events) -> list[list[str]]:
    """What each transaction since the last call did: tables made, and chains deleted."""
    found: list[list[str]] = [[]]
    for message in events.read(100_000):
        if message.kind == NEWGEN:
            found.append([])
        elif message.kind == NEWTABLE:
            found[-1].append("+table")
        elif message.kind == DELCHAIN:
            found[-1].append(f"-{chain_of(message)}")
    return found[:-1]


@pytest.mark.parametrize("with_sets", SETS)
def test_what_the_go_agent_left_goes_once_ours_stands(host: Namespace, with_sets: bool) -> None:
    add_foreign_rules(host, "nftables")
    rules = saved(host)
    host.run("iptables-nft-restore", "--noflush", text=go_rules(60))
    assert len(saved(host)) > len(rules) + 200
    agent = nft_agent(host, with_sets)
    assert agent.resync() == []
    events = host.call(lambda: Events(NETLINK_NETFILTER, (GROUP,)))
    host.at_end.callback(events.close)
    assert not errors(agent.plan(ALL, *SAMPLE))
    assert events_of_transactions(events)[:3] == [["+table"], ["-KILO-IPIP", "-KILO-NAT"], ["+table"]]
    assert foreign(host) == rules
    assert "KILO-" not in "\n".join(saved(host))
    fresh = Namespace()
    try:
        make_host_chains(fresh)
        other = nft_agent(fresh, with_sets)
        other.plan(ALL, *SAMPLE)
        assert own(fresh) == own(host)
    finally:
        fresh.close()
    agent.look_anew()
    assert agent.resync() == []


@pytest.mark.parametrize("with_sets", SETS)
def test_a_second_pass_finds_nothing_to_do_and_neither_does_a_second_agent(
    host: Namespace, with_sets: bool
) -> None:
    make_host_chains(host)
    agent = nft_agent(host, with_sets)
    assert not errors(agent.plan(ALL, *SAMPLE))
    after = ruleset(host)
    assert agent.step() == agent.resync() == agent.step() == agent.resync() == []
    assert nft_agent(host, with_sets).plan(ALL, *SAMPLE) == []
    assert ruleset(host) == after


@pytest.mark.parametrize("with_sets", SETS)
def test_nft_and_iptables_read_and_write_our_rules_as_they_are(host: Namespace, with_sets: bool) -> None:
    make_host_chains(host)
    agent = nft_agent(host, with_sets)
    agent.plan(
        ALL,
        *SAMPLE,
        *entries(no_masquerade_to="fd00::/16 0.0.0.0/1", ipip_accept_from="fd00::1/128"),
        *entries(masquerade_from="::/0", forward_accept_from="fd00::/15 10.3.0.0/17"),
    )
    for program in PROGRAMS["nftables"]:
        text = host.run(f"{program}-save")
        host.run(f"{program}-restore", text=text)
    text = own(host)
    host.run("nft", "-f", "-", text=f"delete table ip kilo\ndelete table ip6 kilo\n{text}")
    assert own(host) == text
    assert agent.resync() == []


def test_the_number_of_rules_does_not_depend_on_the_number_of_nodes(host: Namespace) -> None:
    def networks(first: int, last: int) -> str:
        return " ".join(f"10.{n // 250 + 10}.{n % 250}.0/24" for n in range(first, last))

    def rules() -> list[str]:
        return [line for line in ruleset(host).splitlines() if "handle" in line]

    make_host_chains(host)
    agent = nft_agent(host)
    agent.plan(ALL, *entries(no_masquerade_to=networks(0, 3), forward_accept_to=networks(0, 3)))
    few = rules()
    agent.plan(*entries(no_masquerade_to=networks(3, 1000), forward_accept_to=networks(3, 1000)))
    assert rules() == few
    assert len(elements(host)) == 1000
    assert "Number of entries: 1000" in host.run("ipset", "list", "-t", "kilo-nft-forward-accept-to-v4")


def test_members_that_lie_in_one_another(host: Namespace) -> None:
    """Any order of coming and going; the kernel refuses what overlaps."""
    networks = [f"10.{a}.{b}.0/{bits}" for a, b in ((0, 0), (0, 128), (1, 0)) for bits in (24, 25)]
    networks += ["10.0.0.0/16", "10.0.0.0/15", "10.0.0.0/8", "10.0.0.1/32", "0.0.0.0/0", "255.0.0.0/8"]
    items = dict(zip(networks, entries(no_masquerade_to=" ".join(networks)), strict=True))
    agent, there = nft_agent(host), set[str]()
    agent.plan(policy())
    chance = random.Random(1107)
    for _ in range(60):
        come = set(chance.sample(networks, chance.randrange(4))) - there
        go = {network for network in there if chance.random() < 0.3}
        there = (there | come) - go
        outcomes = agent.plan(*map(items.__getitem__, come), without=tuple(map(items.__getitem__, go)))
        assert not errors(outcomes)
        wanted = {ipaddress.IPv4Network(network) for network in there}
        outer = {n for n in wanted if not any(n != other and n.subnet_of(other) for other in wanted)}
        assert {ipaddress.IPv4Network(network) for network in elements(host)} == outer
    agent.look_anew()
    assert agent.resync() == []


def test_more_members_than_one_message_holds(host: Namespace) -> None:
    many = " ".join(f"10.{n // 200}.{n % 200}.0/24 fd00:{n // 200}:{n % 200}::/48" for n in range(4000))
    agent = nft_agent(host)
    assert not errors(agent.plan(policy(), *entries(no_masquerade_to=many)))
    assert len(elements(host)) == len(elements(host, family="ip6")) == 4000
    agent.look_anew()
    assert agent.resync() == []
    assert not errors(agent.plan(without=tuple(entries(no_masquerade_to=many))))
    assert elements(host) == set()


@pytest.mark.parametrize("with_sets", SETS)
def test_flags_that_changed_while_nobody_ran(host: Namespace, with_sets: bool) -> None:
    make_host_chains(host)
    nft_agent(host, with_sets).plan(ALL, *SAMPLE)
    second = nft_agent(host, with_sets)
    second.plan(policy(), *entries(masquerade_from="10.9.0.0/24", no_masquerade_to="10.9.0.0/24"))
    text = ruleset(host) + "\n".join(saved(host)) + host.run("ipset", "save")
    assert elements(host) == elements(host, "masquerade-from") == {"10.9.0.0/24"}
    for gone in ("ipip", "10.2.0.0", "10.5.0.1", "10.1.0.10", "kilo-nft", '"Kilo: forwarded'):
        assert gone not in text


BROKEN = {
    "flush ruleset": {"kilo-v4", "kilo-v6"},
    "delete table ip6 kilo": {"kilo-v6"},
    "flush chain ip kilo postrouting": {"kilo-v4"},
    "insert rule ip kilo postrouting accept": {"kilo-v4"},
    "flush chain ip kilo input; delete chain ip kilo input": {"kilo-v4"},
    "add chain ip kilo mine; add rule ip kilo mine jump mine2": {"kilo-v4"},
    "add table ip kilo { flags dormant; }": {"kilo-v4"},
    "add chain ip kilo postrouting { policy drop; }": {"kilo-v4"},
    "add set ip6 kilo mine { type inet_service; }": {"kilo-v6"},
    "add map ip kilo jumps { type ipv4_addr : verdict; }": {"kilo-v4"},
    "delete element ip kilo no-masquerade-to { 10.2.1.0/24 }": {"kilo-no-masquerade-to-v4"},
    "flush set ip kilo no-masquerade-to": {"kilo-no-masquerade-to-v4"},
    "add element ip kilo no-masquerade-to { 192.0.2.3-192.0.2.9 }": {"kilo-no-masquerade-to-v4/surplus"},
}


@pytest.mark.parametrize("command", BROKEN)
def test_what_somebody_broke_is_repaired_and_called_a_repair(host: Namespace, command: str) -> None:
    agent = nft_agent(host)
    agent.resync()
    assert not any(outcome.repair for outcome in agent.plan(ALL, *SAMPLE))
    whole = own(host)
    if "mine2" in command:
        command = "add chain ip kilo mine2; " + command
    host.run("nft", command)
    if "ruleset" not in command and "delete table" not in command:
        assert own(host) != whole
    outcomes = agent.resync()
    assert own(host) == whole
    assert all(outcome.repair and not outcome.error for outcome in outcomes)
    keys = {outcome.key for outcome in outcomes}
    assert BROKEN[command.removeprefix("add chain ip kilo mine2; ")] <= keys
    assert agent.resync() == []


def test_an_element_that_stands_for_everything_goes(host: Namespace) -> None:
    """nft's ``*``, by netlink, as nft 1.0.6 ends with a fault at it."""
    agent = nft_agent(host)
    agent.plan(policy(), *SAMPLE)
    whole = own(host)
    (added,) = new_elements(4, "kilo", "no-masquerade-to", [CATCH_ALL])

    def add() -> None:
        with contextlib.closing(NftSocket()) as netlink:
            assert netlink.commit([added]) is None

    host.call(add)
    assert "*" in elements(host)
    assert [outcome.key for outcome in agent.resync()] == ["kilo-no-masquerade-to-v4/surplus"]
    assert own(host) == whole


def test_what_somebody_broke_in_the_tables_of_iptables_is_repaired(host: Namespace) -> None:
    make_host_chains(host)
    agent = nft_agent(host)
    agent.plan(ALL, *SAMPLE)
    whole, members = saved(host), host.run("ipset", "save", "-sorted")

    def repaired(*command: str) -> set[str]:
        host.run(*command)
        outcomes = agent.resync()
        assert saved(host) == whole
        assert host.run("ipset", "save", "-sorted") == members
        assert all(outcome.repair and not outcome.error for outcome in outcomes)
        return {outcome.key for outcome in outcomes}

    forward = "kilo-nft-forward-accept-from-v4"
    assert repaired("iptables-nft", "-F", "FORWARD") == {"filter-v4"}
    assert repaired("ip6tables-nft", "-D", "FORWARD", "2") == {"filter-v6"}
    assert repaired("iptables-nft", "-I", "FORWARD", "-m", "comment", "--comment", "Kilo: x") == {"filter-v4"}
    assert repaired("iptables-nft", "-N", "KILO-OLD") == {"filter-v4"}
    assert repaired("ipset", "flush", forward) == {forward}
    assert repaired("ipset", "add", forward, "192.0.2.0/24") == {f"{forward}/surplus"}


def test_a_chain_that_appears_gets_our_rules(host: Namespace) -> None:
    agent = nft_agent(host)
    agent.plan(ALL, *SAMPLE)
    assert ipsets(host) == [] and saved(host) == []
    make_host_chains(host)
    assert "filter-v4" in {outcome.key for outcome in agent.resync()}
    assert [line.count("kilo-nft-forward") for line in saved(host) if "-A FORWARD" in line] == [1] * 4
    host.run("nft", "delete", "table", "ip", "filter")
    keys = {outcome.key for outcome in agent.resync()}
    assert keys == {
        f"kilo-nft-{s}-v4/surplus" for s in ("forward-accept-from", "forward-accept-to", "ipip-accept-from")
    }


def test_rules_that_others_put_before_and_after_ours_stay_there(host: Namespace) -> None:
    make_host_chains(host)
    agent = nft_agent(host)
    agent.plan(ALL, *SAMPLE)
    for chain in ("INPUT", "FORWARD"):
        host.run("iptables-nft", "-I", chain, "-s", "192.0.2.1", "-j", "DROP")
        host.run("iptables-nft", "-A", chain, "-s", "192.0.2.2", "-j", "DROP")
    after = saved(host)
    assert agent.resync() == []
    agent.plan(policy(guard=True, forward=False))
    agent.plan(policy(guard=False, forward=True))
    agent.plan(ALL)
    assert foreign(host) == [line for line in after if "Kilo: " not in line]
    rules = [line for line in saved(host) if " -A INPUT " in line]
    assert ["192.0.2.1" in rules[0], "192.0.2.2" in rules[1], "Kilo: " in rules[2]] == [True] * 3


def test_a_table_of_our_name_that_is_another(host: Namespace) -> None:
    host.run(
        "nft",
        """
        table ip kilo {
            set no-masquerade-to { type inet_service; elements = { 22 }; }
            set masquerade-from { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }
            chain postrouting { type filter hook input priority 0; tcp dport @no-masquerade-to drop; }
        }
        """,
    )
    agent = nft_agent(host)
    assert not errors(agent.plan(ALL, *SAMPLE))
    assert "inet_service" not in own(host) and "192.0.2" not in own(host)
    assert agent.resync() == []


def test_what_was_known_is_looked_at_anew_when_the_kernel_refuses(host: Namespace) -> None:
    """Somebody changed it since, and we have not heard of it yet."""
    make_host_chains(host)
    agent = nft_agent(host)
    agent.plan(ALL, *SAMPLE)
    host.run("iptables-nft", "-F", "FORWARD")
    host.run("nft", "delete", "element", "ip", "kilo", "no-masquerade-to", "{ 10.2.1.0/24 }")
    assert not errors(agent.plan(policy(guard=True), without=(SAMPLE[3],)))
    host.run("nft", "delete", "table", "ip", "kilo")
    assert not errors(agent.plan(ALL, SAMPLE[3], *entries(no_masquerade_to="10.77.0.0/16")))
    assert elements(host) == {"10.2.0.0/24", "10.2.1.0/24", "10.4.0.1", "10.77.0.0/16"}
    assert agent.resync() == []


def hold(host: Namespace, table: str, chain: str = "") -> NftSocket:
    """A table that belongs to a socket: nobody else may change it, and it goes with the socket."""

    def make() -> NftSocket:
        netlink = NftSocket()
        made = new_table(4, table)
        requests = [Request(made.kind, made.flags, made.body + attribute(2, struct.pack(">I", OWNER)))]
        if chain:
            requests.append(new_chain(4, table, chain, NftHook("filter", 2, 0)))
        assert netlink.commit(requests) is None
        return netlink

    return host.call(make)


def test_a_table_of_the_hosts_that_refuses_costs_itself_alone(host: Namespace) -> None:
    owner = hold(host, "filter", "FORWARD")
    agent = nft_agent(host)
    told = errors(agent.plan(ALL, *SAMPLE))
    assert told == ["filter-v4: Operation not permitted (EPERM)"]
    assert elements(host) == {"10.2.0.0/24", "10.2.1.0/24", "10.4.0.1"}
    assert agent.step() == [], "it waits for its time"
    owner.close()
    host.run("iptables-nft", "-P", "FORWARD", "DROP")
    agent.clock.now += 1
    assert Outcome("filter-v4") in agent.resync()
    assert any("Kilo: " in line for line in saved(host))


def test_our_table_that_refuses_leaves_the_go_agents_rules_in_place(host: Namespace) -> None:
    host.run("iptables-nft-restore", text=go_rules(2))
    before = saved(host)
    owner = hold(host, "kilo")
    agent = nft_agent(host)
    told = errors(agent.plan(policy(), *SAMPLE))
    assert told == ["kilo-v4: Operation not permitted (EPERM)"]
    assert saved(host) == before
    assert "ip6 kilo" in ruleset(host)
    owner.close()
    agent.clock.now += 1
    assert not errors(agent.step())
    assert "KILO-" not in "\n".join(saved(host)) and elements(host)


def test_no_rules_while_an_ipset_of_theirs_cannot_be_filled(host: Namespace) -> None:
    name = "kilo-nft-forward-accept-from-v4"
    make_host_chains(host)
    host.run("ipset", "create", name, "hash:ip")
    host.run("iptables-nft", "-A", "OUTPUT", "-m", "set", "--match-set", name, "src")
    agent = nft_agent(host)
    assert errors(agent.plan(ALL, *SAMPLE)) == [f"{name}: rules still refer to it"]
    assert elements(host) == {"10.2.0.0/24", "10.2.1.0/24", "10.4.0.1"}
    assert not any("Kilo: " in line for line in host.run("iptables-nft-save").splitlines())
    assert any("Kilo: " in line for line in host.run("ip6tables-nft-save").splitlines())
    host.run("iptables-nft", "-F", "OUTPUT")
    agent.clock.now += 1
    assert not errors(agent.step())
    assert any("Kilo: " in line for line in host.run("iptables-nft-save").splitlines())


def test_a_chain_that_others_still_use_is_emptied_and_told(host: Namespace) -> None:
    host.run("iptables-nft-restore", text=go_rules(2))
    host.run("iptables-nft", "-t", "nat", "-N", "MINE")
    host.run("iptables-nft", "-t", "nat", "-A", "MINE", "-j", "KILO-NAT")
    agent = nft_agent(host)
    assert errors(agent.plan(policy(), *SAMPLE)) == [
        "nat-v4: rules of others still jump to KILO-NAT, now empty"
    ]
    assert [line for line in saved(host) if "KILO" in line and "-A" in line] == ["[0:0] -A MINE -j KILO-NAT"]
    after = ruleset(host)
    agent.clock.now += 1
    assert errors(agent.resync()) and ruleset(host) == after
    host.run("iptables-nft", "-t", "nat", "-F", "MINE")
    agent.clock.now += 2
    outcomes = agent.resync()
    assert Outcome("nat-v4") in outcomes and not errors(outcomes)
    assert "KILO" not in "\n".join(saved(host))


def test_nothing_is_made_that_nobody_asked_for(host: Namespace) -> None:
    agent = nft_agent(host)
    assert agent.clean_up() == [] and ruleset(host) == ""
    agent.plan(policy(), *SAMPLE)
    assert "table ip filter" not in ruleset(host)
    assert ipsets(host) == []
    assert not errors(agent.clean_up()) and ruleset(host) == ""
