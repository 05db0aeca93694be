"""The number of rules is the same for 3 nodes and for 1,000."""

from __future__ import annotations

import pytest

from kilo.model.plan import PlanItem, Tunnel
from kilo.netctl.firewall.choice import Kind
from tests.integration.netctl.firewall.hosts import PROGRAMS, Agent, Namespace, entries, errors, policy

V4, V6 = "10.{a}.{b}.0/24", "fd00:{a}:{b}::/48"


def plan(nodes: int) -> list[PlanItem]:
    """What a leader has, with a tunnel and with both IP versions; every node is in every set."""
    networks = " ".join(text.format(a=n // 250, b=n % 250) for n in range(nodes) for text in (V4, V6))
    return [
        policy(guard=True, forward=True),
        Tunnel("ipip", "10.0.0.1/32"),
        *entries(
            masquerade_from=networks,
            masquerade_to=networks,
            no_masquerade_to=networks,
            forward_accept_from=networks,
            forward_accept_to=networks,
            ipip_accept_from=networks,
        ),
    ]


def rules(host: Namespace, kind: Kind) -> list[str]:
    """Of iptables, as it prints them, and of nft's tables, with their handles."""
    lines = [line for p in PROGRAMS[kind] for line in host.run(f"{p}-save").splitlines() if "-A " in line]
    listed = host.run("nft", "-a", "-s", "list", "ruleset").splitlines()
    return lines + [line for line in listed if "handle" in line and "elements" not in line]


@pytest.mark.parametrize(("kind", "count"), [("legacy", 26), ("nftables", 22)])
def test_the_number_of_rules_with_1000_nodes_is_that_with_3(host: Namespace, kind: Kind, count: int) -> None:
    for program in PROGRAMS[kind]:
        for chain in ("INPUT", "FORWARD"):
            host.run(program, "-P", chain, "DROP")
    agent = Agent(host, kind=kind)
    agent.resync()
    assert not errors(agent.plan(*plan(3)))
    few = rules(host, kind)
    assert len([line for line in few if "Kilo: " in line]) == count
    assert not errors(agent.plan(*plan(1000)))
    assert rules(host, kind) == few
    assert agent.resync() == []
