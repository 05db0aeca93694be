"""What the firewall does to packets: both firewalls, with ipset and without."""

from __future__ import annotations

import pytest

from kilo.model.plan import Route, SetEntry
from kilo.netctl.firewall.choice import Kind
from tests.integration.netctl.firewall.hosts import (
    BRIEF,
    HOST,
    HOST6,
    KNOWN,
    KNOWN6,
    OUTSIDE,
    PATIENT,
    POD,
    POD6,
    STRANGER,
    STRANGER6,
    Agent,
    Hosts,
    entries,
    errors,
    ipip_arrives,
    policy,
    source_seen,
    sources_seen,
)
from tests.integration.netctl.firewall.samples import OF_BOTH_FAMILIES as SAMPLE

KINDS: dict[str, tuple[Kind, bool]] = {
    "legacy": ("legacy", True),
    "legacy-plain": ("legacy", False),
    "nftables": ("nftables", True),
    "nftables-plain": ("nftables", False),
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def agent(wired: Hosts, request: pytest.FixtureRequest) -> Agent:
    kind, sets = request.param
    return Agent(wired.host, sets, kind=kind)


def seen(wired: Hosts, destination: str, wait: float = PATIENT) -> str:
    """The source that ``destination`` sees of a packet from the pod, "" if none arrives."""
    return source_seen(wired.pod, POD6 if ":" in destination else POD, wired.outside, destination, wait)


def test_pod_traffic_is_masqueraded_unless_it_stays_among_what_is_known(wired: Hosts, agent: Agent) -> None:
    assert (seen(wired, STRANGER), seen(wired, STRANGER6)) == (POD, POD6)
    assert not errors(agent.plan(policy(), *SAMPLE))
    assert (seen(wired, STRANGER), seen(wired, STRANGER6)) == (HOST, HOST6)
    assert (seen(wired, KNOWN), seen(wired, KNOWN6)) == (POD, POD6)
    assert not errors(agent.clean_up())
    assert (seen(wired, STRANGER), seen(wired, STRANGER6)) == (POD, POD6)


def test_at_no_moment_is_known_traffic_masqueraded(wired: Hosts, agent: Agent) -> None:
    def come_and_go() -> None:
        agent.plan(policy(), *SAMPLE)
        for _ in range(8):
            agent.clean_up()
            agent.resync()

    assert sources_seen(wired.pod, POD, wired.outside, KNOWN, come_and_go) == {POD}
    assert seen(wired, STRANGER) == HOST


def test_a_member_more_and_a_member_less(wired: Hosts, agent: Agent) -> None:
    agent.plan(policy(), *SAMPLE)
    (friend,) = entries(no_masquerade_to="203.0.113.9/32")
    agent.plan(friend)
    assert seen(wired, STRANGER) == POD
    agent.plan(without=(friend,))
    assert seen(wired, STRANGER) == HOST


def test_what_a_route_cannot_carry_is_masqueraded_until_it_can(wired: Hosts, agent: Agent) -> None:
    office = SetEntry("no_masquerade_to", "203.0.113.9/32", route="203.0.113.0/24")
    assert not errors(agent.plan(policy(), *SAMPLE, office, Route("203.0.113.0/24", "wireguard")))
    assert (seen(wired, STRANGER), seen(wired, KNOWN)) == (POD, POD)
    assert not errors(agent.lose("203.0.113.0/24"))
    assert (seen(wired, STRANGER), seen(wired, KNOWN)) == (HOST, POD), "it costs itself alone"
    assert not errors(agent.lose())
    assert seen(wired, STRANGER) == POD


def test_traffic_to_allowed_location_ips_is_masqueraded_whoever_it_is_from(
    wired: Hosts, agent: Agent
) -> None:
    agent.plan(policy(), *entries(masquerade_to="203.0.113.0/24", no_masquerade_to="10.2.1.0/24"))
    assert seen(wired, STRANGER) == HOST
    assert seen(wired, KNOWN) == POD


def test_networks_of_length_zero(wired: Hosts, agent: Agent) -> None:
    everything = entries(masquerade_from="0.0.0.0/0 ::/0", no_masquerade_to="10.2.1.0/24")
    assert not errors(agent.plan(policy(), *everything))
    assert (seen(wired, STRANGER), seen(wired, STRANGER6), seen(wired, KNOWN)) == (HOST, HOST6, POD)
    assert agent.resync() == []
    agent.plan(*entries(masquerade_from="128.0.0.0/1"), without=(everything[0],))
    assert seen(wired, STRANGER) == POD
    assert seen(wired, STRANGER6) == HOST6


def test_networks_that_differ_in_host_bits_alone(wired: Hosts, agent: Agent) -> None:
    one, other = entries(masquerade_from="10.2.0.7/24 10.2.0.0/24")
    agent.plan(policy(), one, other)
    agent.plan(without=(one,))
    assert seen(wired, STRANGER) == HOST
    agent.plan(without=(other,))
    assert seen(wired, STRANGER) == POD


def test_forwarding_where_the_policy_is_to_drop(wired: Hosts, agent: Agent) -> None:
    for program in agent.iptables:
        wired.host.run(program, "-P", "FORWARD", "DROP")
    agent.resync()
    pods = entries(
        forward_accept_from="10.2.0.0/24 2001:db8:2::/64", forward_accept_to="10.2.0.0/24 2001:db8:2::/64"
    )
    agent.plan(policy(forward=False), *pods)
    assert (seen(wired, KNOWN, BRIEF), seen(wired, KNOWN6, BRIEF)) == ("", "")
    agent.plan(policy(forward=True))
    assert (seen(wired, KNOWN), seen(wired, KNOWN6)) == (POD, POD6)
    assert source_seen(wired.outside, STRANGER, wired.pod, POD) == STRANGER
    agent.plan(policy(forward=False))
    assert (seen(wired, KNOWN, BRIEF), seen(wired, KNOWN6, BRIEF)) == ("", "")


def test_the_guard_accepts_ipip_from_the_location_alone(wired: Hosts, agent: Agent) -> None:
    def arrives(source: str, wait: float = PATIENT) -> bool:
        destination = HOST6 if ":" in source else HOST
        return ipip_arrives(wired.outside, source, wired.host, destination, wait)

    agent.plan(policy(guard=False), *entries(ipip_accept_from="198.51.100.2/32 2001:db8:3::5/128"))
    assert arrives(OUTSIDE)
    assert arrives(STRANGER)
    agent.plan(policy(guard=True))
    assert arrives(OUTSIDE)
    assert arrives(KNOWN6)
    assert not arrives(STRANGER, BRIEF)
    assert not arrives(STRANGER6, BRIEF)
    assert source_seen(wired.outside, STRANGER, wired.host, HOST) == STRANGER
    agent.plan(policy(guard=False))
    assert arrives(STRANGER)


def test_ipip_from_the_location_where_the_policy_is_to_drop(wired: Hosts, agent: Agent) -> None:
    agent.plan(policy(guard=True), *entries(ipip_accept_from="198.51.100.2/32"))
    wired.host.run(agent.iptables[0], "-P", "INPUT", "DROP")
    agent.resync()
    assert ipip_arrives(wired.outside, OUTSIDE, wired.host, HOST)
    assert not ipip_arrives(wired.outside, STRANGER, wired.host, HOST, BRIEF)
    assert source_seen(wired.outside, OUTSIDE, wired.host, HOST, BRIEF) == ""
