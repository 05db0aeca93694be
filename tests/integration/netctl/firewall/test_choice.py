"""Which firewall the host uses; and what becomes of what the other one left."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import kilo
from kilo.log import Logger
from kilo.netctl.firewall.choice import KUBELETS, Choice, KubeChains, Seen, decide, look
from kilo.netctl.reconcile import Outcome
from tests.integration.netctl.firewall.hosts import (
    HOST,
    KNOWN,
    POD,
    PROGRAMS,
    STRANGER,
    Agent,
    Namespace,
    add_foreign_rules,
    entries,
    errors,
    go_rules,
    hosts,
    policy,
    sources_seen,
)

SAMPLE = entries(
    masquerade_from="10.2.0.0/24", no_masquerade_to="10.2.0.0/24 10.2.1.0/24", forward_accept_to="10.2.0.0/24"
)
ALL = policy(guard=True, forward=True)
_WITHOUT_NFTABLES = """
import ctypes, os, platform, socket, struct
from kilo.log import Logger
from kilo.netctl.firewall.selected import SelectedBackend
from kilo.netctl.firewall.backend import Desired
from kilo.model.plan import Firewall as Policy
call = {"x86_64": 41, "aarch64": 198}[platform.machine()]
def step(code, k, yes=0, no=0):
    return struct.pack("HBBI", code, yes, no, k)
program = b"".join([
    step(0x20, 0), step(0x15, call, 0, 5), step(0x20, 16), step(0x15, socket.AF_NETLINK, 0, 3),
    step(0x20, 32), step(0x15, 12, 0, 1),
    step(0x06, 0x00050000 | 93), step(0x06, 0x7FFF0000)])
kept = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(kept)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter, 0, 0) == 0
backend = SelectedBackend("auto", Logger("netctl", "none"))
desired = Desired()
desired.want(Policy(ipip_guard=False, forward=False))
desired.add("masquerade_from", "10.2.0.0/24")
backend.load()
outcomes = backend.apply(desired) + backend.prune(desired)
assert not [o for o in outcomes if o.error], outcomes
assert backend.settled()
print(backend.told)
"""


def seen(
    legacy: KubeChains | None = None,
    nftables: KubeChains | None = None,
    kube_proxy: bool = False,
    lacks: str = "",
) -> Seen:
    return Seen(legacy or set(), nftables or set(), kube_proxy, lacks)


def many(count: int) -> KubeChains:
    return {("nat", f"KUBE-{n}") for n in range(count)}


@pytest.mark.parametrize(
    ("found", "kind", "firm"),
    [
        (seen(legacy=KUBELETS), "legacy", True),
        (seen(nftables=KUBELETS), "nftables", True),
        (seen(legacy=KUBELETS, nftables=many(9)), "legacy", True),
        (seen(legacy=many(9), nftables=KUBELETS), "nftables", True),
        (seen(legacy=KUBELETS | many(9), nftables=KUBELETS), "legacy", True),
        (seen(legacy=KUBELETS, nftables=KUBELETS), "nftables", True),
        (seen(legacy=many(2), nftables=many(1)), "legacy", True),
        (seen(nftables=many(1)), "nftables", True),
        (seen(kube_proxy=True), "nftables", True),
        (seen(legacy=many(1), kube_proxy=True), "legacy", True),
        (seen(), "nftables", False),
        (seen(lacks="netlink socket: Protocol not supported"), "legacy", True),
        (seen(legacy=many(1), lacks="Operation not supported"), "legacy", True),
    ],
)
def test_what_was_seen_decides(found: Seen, kind: str, firm: bool) -> None:
    choice = decide("auto", lambda: found)
    assert (choice.kind, choice.firm) == (kind, firm)
    assert found.lacks in choice.reason


@pytest.mark.parametrize("flag", ["legacy", "nftables"])
def test_the_flag_decides_without_a_look(flag: str) -> None:
    def look() -> Seen:
        raise AssertionError

    choice = decide(flag, look)
    assert choice == Choice(choice.kind, "--firewall") and choice.kind == flag


def untouched(host: Namespace) -> bool:
    files = [Path(f"/proc/thread-self/net/{f}_tables_names") for f in ("ip", "ip6")]
    names = host.call(lambda: [file.read_text() for file in files if file.exists()])
    return not any(names) and host.run("nft", "list", "ruleset") == ""


def test_looking_makes_nothing(host: Namespace) -> None:
    assert host.call(look) == seen()
    assert untouched(host)
    agent = Agent(host, flag="auto")
    agent.resync()
    assert untouched(host)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["legacy", "nftables"])
def test_chains_are_found_where_they_are(host: Namespace, kind: str, version: int) -> None:
    program = PROGRAMS["legacy" if kind == "legacy" else "nftables"][version == 6]
    for table, chain in (("mangle", "KUBE-IPTABLES-HINT"), ("nat", "KUBE-SERVICES"), ("nat", "MINE")):
        host.run(program, "-t", table, "-N", chain)
    there = {("mangle", "KUBE-IPTABLES-HINT"), ("nat", "KUBE-SERVICES")}
    assert host.call(look) == (seen(legacy=there) if kind == "legacy" else seen(nftables=there))


def test_kube_proxys_own_table_is_found(host: Namespace) -> None:
    host.run("nft", "add table ip6 kube-proxy")
    assert host.call(look) == seen(kube_proxy=True)


def test_a_kernel_without_nftables(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(kilo.__file__).parents[1]))
    told = host.run(sys.executable, "-c", _WITHOUT_NFTABLES).strip()
    assert told == (
        "legacy, without ipset: no nftables in the kernel: netlink socket: Protocol not supported"
    )
    assert "KILO-NAT" in host.run("iptables-legacy-save")


def test_the_choice_is_logged_once_with_its_reason(host: Namespace) -> None:
    read, write = os.pipe()
    with open(read) as lines:
        agent = Agent(host, flag="auto", log=Logger("netctl", "info", write))
        agent.plan(policy(), *SAMPLE)
        agent.resync()
        agent.resync()
        os.close(write)
        (line,) = [line for line in lines if "firewall chosen" in line]
    assert '"firewall":"nftables"' in line and "no chains KUBE-" in line
    assert agent.backend.told.startswith("nftables: no chains KUBE-")


def test_the_host_shows_what_it_uses_while_we_run(host: Namespace) -> None:
    agent = Agent(host, flag="auto")
    agent.plan(ALL, *SAMPLE)
    assert "table ip kilo" in host.run("nft", "list", "ruleset")
    host.run("iptables-legacy", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
    assert not errors(agent.resync())
    assert agent.backend.told == "legacy: kubelet's chains are in legacy tables"
    assert "KILO-NAT" in host.run("iptables-legacy-save")
    assert host.run("nft", "list", "ruleset") == ""
    host.run("iptables-nft", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
    host.run("iptables-legacy", "-t", "mangle", "-X")
    assert agent.resync() == [], "once shown, it is not asked again"
    assert agent.resync() == []


def test_what_failed_of_the_other_fails_no_more(host: Namespace) -> None:
    """Of the firewall that was chosen first, and of the end of the one that is chosen then."""
    failing: dict[str, str] = {}

    def note(outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            failing.pop(outcome.key, None)
            if outcome.error:
                failing[outcome.key] = outcome.error

    Agent(host, flag="legacy").plan(ALL, *SAMPLE)
    for kind in PROGRAMS:
        nat = (PROGRAMS[kind][0], "-t", "nat")
        if kind == "nftables":
            host.run(*nat, "-N", "KILO-NAT")
        host.run(*nat, "-N", "MINE")
        host.run(*nat, "-A", "MINE", "-j", "KILO-NAT")
    agent = Agent(host, flag="auto")
    note(agent.plan(ALL, *SAMPLE))
    assert failing.keys() == {"nat-v4"} and agent.backend.told.startswith("nftables")
    host.run("iptables-nft", "-t", "nat", "-F", "MINE")
    agent.clock.now += 1
    note(agent.resync())
    assert failing.keys() == {"the legacy firewall"}
    host.run("iptables-nft", "-t", "nat", "-N", "KILO-NAT")
    host.run("iptables-nft", "-t", "nat", "-A", "MINE", "-j", "KILO-NAT")
    note(agent.resync())
    assert failing.keys() == {"the legacy firewall", "nat-v4"}
    host.run("iptables-legacy", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
    note(agent.resync())
    assert agent.backend.told.startswith("legacy")
    assert failing.keys() == {"the nftables firewall"}
    host.run("iptables-nft", "-t", "nat", "-F", "MINE")
    agent.clock.now += 1
    note(agent.step())
    assert failing == {}


def everything(host: Namespace) -> list[str]:
    lines = [host.run(f"{p}-save", "-c") for kind in PROGRAMS for p in PROGRAMS[kind]]
    lines += [host.run("ipset", "save"), host.run("nft", "list", "ruleset")]
    return [line for line in "\n".join(lines).splitlines() if not line.startswith(("#", ":"))]


def foreign(host: Namespace) -> list[str]:
    marks = ("KILO-", "Kilo: ", "kilo")
    return [line for line in everything(host) if "-A" in line and not any(mark in line for mark in marks)]


@pytest.mark.parametrize("with_sets", [True, False])
@pytest.mark.parametrize("flags", [("legacy", "nftables"), ("nftables", "legacy")])
def test_what_the_other_left_goes_and_the_rules_of_others_stay(
    host: Namespace, flags: tuple[str, str], with_sets: bool
) -> None:
    for kind in PROGRAMS:
        add_foreign_rules(host, kind)
    before, whole = foreign(host), everything(host)
    Agent(host, with_sets, flag=flags[0]).plan(ALL, *SAMPLE)
    agent = Agent(host, with_sets, flag=flags[1])
    assert not errors(agent.plan(ALL, *SAMPLE))
    assert foreign(host) == before
    text = "\n".join(everything(host))
    if flags[1] == "nftables":
        assert "KILO-" not in text and "table ip kilo" in text
    else:
        assert "KILO-NAT" in text and "table ip kilo" not in text and "kilo-nft" not in text
    assert agent.resync() == []
    assert not errors(agent.clean_up())
    assert everything(host) == whole


@pytest.mark.parametrize("kind", ["legacy", "nftables"])
@pytest.mark.parametrize("flag", ["legacy", "nftables"])
def test_take_over_from_the_go_agent_in_either_tables(host: Namespace, kind: str, flag: str) -> None:
    program = PROGRAMS["legacy" if kind == "legacy" else "nftables"][0]
    host.run(f"{program}-restore", text=go_rules(20))
    agent = Agent(host, flag=flag)
    assert agent.resync() == []
    assert not errors(agent.plan(ALL, *SAMPLE))
    text = "\n".join(everything(host))
    assert "Kilo: do not NAT" not in text and "forward packets" not in text
    assert ("KILO-NAT" in text) == (flag == "legacy")


@pytest.mark.parametrize("flags", [("legacy", "nftables"), ("nftables", "legacy")])
def test_at_every_moment_of_a_change_what_should_be_masqueraded_is(flags: tuple[str, str]) -> None:
    with hosts() as wired:
        agents = [Agent(wired.host, flag=flag) for flag in flags]
        agents[0].plan(policy(), *SAMPLE)

        def change() -> None:
            for _ in range(5):
                for flag in reversed(flags):
                    Agent(wired.host, flag=flag).plan(policy(), *SAMPLE)

        assert sources_seen(wired.pod, POD, wired.outside, KNOWN, change) == {POD}
        assert sources_seen(wired.pod, POD, wired.outside, STRANGER, change) == {HOST}


@pytest.mark.parametrize("kind", ["legacy", "nftables"])
def test_at_every_moment_of_the_take_over_what_should_be_masqueraded_is(kind: str) -> None:
    """The Go agent's rules, in either tables, and either of ours."""
    program = PROGRAMS["legacy" if kind == "legacy" else "nftables"][0]
    rules = "\n".join(
        [
            "*nat",
            ":KILO-NAT - [0:0]",
            '-A POSTROUTING -s 10.2.0.0/24 -m comment --comment "Kilo: jump to NAT chain" -j KILO-NAT',
            "-A KILO-NAT -d 10.2.0.0/23 -j RETURN",
            "-A KILO-NAT -j MASQUERADE",
            "COMMIT",
            "",
        ]
    )
    with hosts() as wired:
        wired.host.run(f"{program}-restore", text=rules)

        def take_over() -> None:
            for flag in ("legacy", "nftables") * 3:
                Agent(wired.host, flag=flag).plan(policy(), *SAMPLE)
                wired.host.run(f"{program}-restore", "--noflush", text=rules)

        assert sources_seen(wired.pod, POD, wired.outside, KNOWN, take_over) == {POD}
        assert sources_seen(wired.pod, POD, wired.outside, STRANGER, take_over) == {HOST}


def test_what_cannot_be_removed_is_told_and_tried_again(host: Namespace) -> None:
    Agent(host, flag="legacy").plan(ALL, *SAMPLE)
    host.run("iptables-legacy", "-t", "nat", "-N", "MINE")
    host.run("iptables-legacy", "-t", "nat", "-A", "MINE", "-j", "KILO-NAT")
    agent = Agent(host, flag="nftables")
    (told,) = errors(agent.plan(ALL, *SAMPLE))
    assert told == (
        "the legacy firewall: cannot be removed: nat-v4: rules of others still jump to KILO-NAT, now empty"
    )
    assert agent.step() == []
    host.run("iptables-legacy", "-t", "nat", "-F", "MINE")
    agent.clock.now += 1
    outcomes = agent.step()
    assert Outcome("the legacy firewall") in outcomes and not errors(outcomes)
    assert "KILO" not in host.run("iptables-legacy-save")
