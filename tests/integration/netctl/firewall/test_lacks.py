"""Kernels and hosts that lack something: IPv6, its tables, ipset. The kernel's own refusals are used.

It is asked for what no kernel has, under the name of what this one is to lack.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import kilo
from kilo.log import Logger
from kilo.netctl.firewall import access, ipset, nft_messages, xtables
from kilo.netctl.firewall.choice import Kind
from kilo.netctl.firewall.layout import FAMILIES
from tests.integration.netctl.firewall.hosts import (
    HOST,
    KNOWN,
    POD,
    PROGRAMS,
    STRANGER,
    Agent,
    Hosts,
    Namespace,
    entries,
    errors,
    hosts,
    source_seen,
)
from tests.integration.netctl.firewall.samples import ALL

V4 = entries(
    masquerade_from="10.2.0.0/24",
    no_masquerade_to="10.2.0.0/24 10.2.1.0/24",
    forward_accept_from="10.2.0.0/24",
    ipip_accept_from="10.1.0.10/32",
)
V6 = entries(masquerade_from="fd00:2::/64", no_masquerade_to="fd00::/16", ipip_accept_from="fd00:1::1/128")
NOBODY = 99
"""A family, and a subsystem of netfilter, that nobody has."""


def works(wired: Hosts) -> bool:
    """Whether pods' traffic is masqueraded as it should be."""
    known = source_seen(wired.pod, POD, wired.outside, KNOWN)
    return (known, source_seen(wired.pod, POD, wired.outside, STRANGER)) == (POD, HOST)


def test_ipv6_that_is_switched_off_on_the_host_is_no_error(kind: Kind) -> None:
    """The mesh may still have IPv6 members: this node is not the only one."""
    with hosts() as wired:
        for key in ("all", "default"):
            wired.host.sysctl(f"net/ipv6/conf/{key}/disable_ipv6", "1")
        agent = Agent(wired.host, kind=kind)
        assert not errors(agent.plan(ALL, *V4, *V6))
        assert works(wired)
        assert agent.resync() == []
        assert not errors(agent.clean_up())


@pytest.mark.parametrize("needed", [False, True])
def test_a_kernel_without_tables_for_ipv6(kind: Kind, needed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an error unless somebody in the mesh has IPv6, and then one of IPv6 alone."""
    if kind == "nftables":
        monkeypatch.setitem(nft_messages.FAMILIES, 6, NOBODY)
        lack = ["kilo-v6: Operation not supported (EOPNOTSUPP)"]
    else:
        monkeypatch.setitem(FAMILIES, 6, replace(FAMILIES[6], level=NOBODY))
        lack = [
            f"{table}-v6: the kernel has no table {table} for IPv6 (module ip6table_{table})"
            for table in ("nat", "filter", "mangle")
        ]
    with hosts() as wired:
        agent = Agent(wired.host, kind=kind)
        assert errors(agent.plan(ALL, *V4, *(V6 if needed else []))) == (lack if needed else [])
        assert works(wired)
        assert agent.backend.settled() != needed
        agent.clock.now += 1
        assert errors(agent.resync()) == (lack if needed else [])
        agent.clock.now += 60
        assert errors(agent.plan(without=tuple(V6))) == []
        assert agent.backend.settled()
        assert errors(agent.clean_up()) == []


LACKS = {
    "the subsystem": ("_SUBSYSTEM", NOBODY << 8),
    "the set type": ("_TYPE_NAME", "hash:nobody"),
}


@pytest.mark.parametrize("lack", LACKS)
def test_without_ipset_there_are_plain_rules(kind: Kind, lack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipset, *LACKS[lack])
    with hosts() as wired:
        program = PROGRAMS[kind][0]
        wired.host.run(program, "-P", "FORWARD", "DROP")
        agent = Agent(wired.host, kind=kind)
        assert not errors(agent.plan(ALL, *V4))
        wired.host.run(program, "-A", "FORWARD", "-d", "10.2.0.0/24", "-j", "ACCEPT")
        assert works(wired)
        text = wired.host.run(f"{program}-save")
        assert "--match-set" not in text
        assert re.search("-A FORWARD -s 10.2.0.0/24 .*Kilo: forwarded", text)
        assert wired.host.run("ipset", "list", "-n") == ""
        (friend,) = entries(no_masquerade_to="203.0.113.9/32")
        assert not errors(agent.plan(friend))
        assert source_seen(wired.pod, POD, wired.outside, STRANGER) == POD
        assert not errors(agent.plan(without=(friend,)))
        assert works(wired) and agent.resync() == []
        assert not errors(agent.clean_up())


def test_without_the_match_there_are_plain_rules(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """ipset is there, and no rule can look into a set (module xt_set)."""
    read, write = os.pipe()
    monkeypatch.setattr(access, "SET_REVISION", 200)
    with open(read) as lines:
        agent = Agent(host, log=Logger("netctl", "warn", write))
        assert not errors(agent.plan(ALL, *V4))
        os.close(write)
        assert "no rule can look into a set" in lines.read()
    assert "-A KILO-NAT -d 10.2.1.0/24" in host.run("iptables-legacy-save")
    assert not host.call(lambda: xtables.has_match(4, "set", 200))


_PLAIN = """
import os, sys
from kilo.config import Config
from kilo.log import Logger
from kilo.model.plan import Firewall as Policy, SetEntry
from kilo.netctl.firewall import Firewall, ipset
ipset._SUBSYSTEM = 99 << 8
firewall = Firewall(Config(firewall="legacy"), Logger("netctl", "none"))
items = [Policy(ipip_guard=True, forward=True)]
for n in range(50):
    items += [SetEntry(kind, f"10.9.{n}.0/24") for kind in ("no_masquerade_to", "masquerade_from")]
def one(what, upserts, removals=()):
    os.write(2, what.encode())
    firewall.update({item.key: item for item in upserts}, removals)
    assert not [o for o in firewall.apply() + firewall.prune() if o.error]
firewall.load()
one("first", items)
more = SetEntry("no_masquerade_to", "10.10.0.0/24")
one("more", [more])
one("less", [], [more.key])
one("end", [])
"""


def test_plain_rules_change_in_one_commit_of_the_table(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(kilo.__file__).parents[1]))
    trace = tmp_path / "trace"
    calls = "trace=setsockopt,write"
    host.run("strace", "-f", "-v", "-o", str(trace), "-e", calls, sys.executable, "-c", _PLAIN)
    commits: dict[str, int] = {}
    for line in trace.read_text().splitlines():
        if found := re.search(r'write\(2, "(\w+)"', line):
            commits[found[1]] = 0
        elif commits:
            commits[list(commits)[-1]] += "SO_SET_REPLACE" in line
    assert commits == {"first": 6, "more": 1, "less": 1, "end": 0}
