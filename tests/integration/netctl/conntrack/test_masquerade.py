"""Flows that began under other rules: which may go on as they did, and which are made to follow."""

from __future__ import annotations

import socket

import pytest

from tests.integration.netctl.conntrack.watched import (
    FRIENDS,
    FROM_PODS,
    UDP,
    Stream,
    Watched,
    connection,
    rules_of_others,
)
from tests.integration.netctl.firewall.hosts import (
    HOST,
    HOST6,
    KNOWN,
    KNOWN6,
    PATIENT,
    POD,
    POD6,
    STRANGER,
    STRANGER6,
    Hosts,
    entries,
    policy,
)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("known", "host", "pod"), [(KNOWN, HOST, POD), (KNOWN6, HOST6, POD6)])
@pytest.mark.parametrize("answers", [False, True])
def test_what_is_known_from_now_on_is_masqueraded_no_more(
    wired: Hosts, watched: Watched, known: str, host: str, pod: str, answers: bool
) -> None:
    watched.plan(policy(), *FROM_PODS)
    stranger = STRANGER6 if ":" in known else STRANGER
    with Stream(wired, known, answers) as stream, Stream(wired, stranger, answers) as bystander:
        assert (stream.seen(), bystander.seen()) == (host, host)
        before = watched.entries()
        watched.agent.plan(*FRIENDS)
        assert stream.seen() == host, "the kernel keeps to what it decided"
        assert watched.after_pass() == 1
        assert stream.seen() == pod
        assert bystander.seen() == host
        gone = {entry for entry in before - watched.entries() if f"dst={known}" in entry}
        assert len(gone) == len(before - watched.entries()) == 1


def test_what_nobody_knows_any_more_is_masqueraded_from_now_on(wired: Hosts, watched: Watched) -> None:
    watched.plan(policy(), *FROM_PODS, *FRIENDS)
    with Stream(wired, KNOWN, answers=True) as stream:
        assert stream.seen() == POD
        assert watched.plan(without=tuple(FRIENDS)) == 1
        assert stream.seen() == HOST


def test_flows_that_were_there_before_the_first_rule(wired: Hosts, watched: Watched) -> None:
    rules_of_others(watched)
    with Stream(wired, STRANGER) as stream, Stream(wired, KNOWN) as other:
        assert (stream.seen(), other.seen()) == (POD, POD)
        assert watched.plan(policy(), *FROM_PODS, *FRIENDS) == 1
        assert (stream.seen(), other.seen()) == (HOST, POD)


def test_flows_that_began_while_somebody_had_flushed_the_rules(wired: Hosts, watched: Watched) -> None:
    rules_of_others(watched)
    watched.plan(policy(), *FROM_PODS)
    flush = {"legacy": ["iptables-legacy", "-t", "nat", "-F"], "nftables": ["nft", "delete table ip kilo"]}
    wired.host.run(*flush[watched.agent.kind])
    with Stream(wired, STRANGER) as stream:
        assert stream.seen() == POD
        watched.agent.resync()
        assert watched.after_pass() == 1
        assert stream.seen() == HOST


@pytest.mark.usefixtures("few")
def test_a_connection_that_was_answered_is_never_cut(wired: Hosts, watched: Watched) -> None:
    watched.plan(policy(), *FROM_PODS)
    with connection(wired, KNOWN) as works, connection(wired, STRANGER) as others:
        assert works() and others()
        before = watched.entries()
        assert watched.plan(*FRIENDS) == 0
        assert watched.plan(without=tuple(FROM_PODS)) == 0
        assert watched.plan(*FROM_PODS) == 0
        assert works() and others()
        assert watched.entries() == before


SCTP = "-p sctp --orig-vtag 1 --reply-vtag 2 --state ESTABLISHED"


DCCP = "-p dccp --role client --state OPEN"


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("protocol", [SCTP, DCCP], ids=["sctp", "dccp"])
def test_nor_is_an_association_of_another_protocol(wired: Hosts, watched: Watched, protocol: str) -> None:
    """Whatever the number of entries."""
    watched.plan(policy(), *FROM_PODS)
    translated = ("-s", POD, "-r", KNOWN, "-q", HOST, "--timeout", "100")
    ports = ("--sport", "1", "--dport", "2", "--reply-port-src", "2", "--reply-port-dst", "1")
    insert = ("conntrack", "-I", *protocol.split(), *ports, *translated)
    wired.host.run(*insert, "-d", KNOWN, "-u", "SEEN_REPLY,ASSURED")
    before = watched.entries()
    assert any("10.2.1.5" in entry for entry in before)
    assert watched.plan(*FRIENDS) == 0
    assert watched.entries() == before


def test_translations_of_others_are_left_alone(wired: Hosts, watched: Watched) -> None:
    """A rule of the host's own, for traffic that ours do not look at; and a service's."""
    nat = (watched.agent.iptables[0], "-t", "nat")
    wired.host.run(*nat, "-A", "POSTROUTING", "-s", "10.9.0.0/24", "-j", "MASQUERADE")
    wired.host.run(
        *nat, "-A", "PREROUTING", "-d", "10.96.0.1", "-p", "udp", "-j", "DNAT", "--to-destination", KNOWN
    )
    wired.pod.ip("addr add 10.9.0.2/32 dev lo")
    wired.host.ip(f"route add 10.9.0.2 via {POD}")
    watched.plan(policy(), *FROM_PODS)

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_INET, UDP)
        made.bind((KNOWN, 7777))
        made.settimeout(PATIENT)
        return made

    def send() -> None:
        for source, destination in (("10.9.0.2", KNOWN), (POD, "10.96.0.1")):
            with socket.socket(socket.AF_INET, UDP) as made:
                made.settimeout(PATIENT)
                made.bind((source, 0))
                made.sendto(b"x", (destination, 7777))
                made.recv(16)

    with wired.outside.call(listen) as listening:
        sending = wired.pod.start(send)
        heard = set()
        for _ in range(2):
            _, sender = listening.recvfrom(16)
            heard.add(sender[0])
            listening.sendto(b"y", sender)
        sending.result()
    assert heard == {HOST}
    before = watched.entries()
    assert sum("dport=7777" in entry for entry in before) == 2
    assert watched.plan(*FRIENDS) == 0
    assert watched.entries() == before


def test_what_the_host_sends_itself_is_left_alone(wired: Hosts, watched: Watched) -> None:
    """A rule may look at it, and what it is translated to is what it had."""
    rules_of_others(watched)
    ports = ("--sport", "1", "--dport", "2", "-t", "100")
    wired.host.run("conntrack", "-I", "-p", "udp", "-s", HOST, "-d", STRANGER, *ports)
    before = watched.entries()
    assert watched.plan(policy(), *FROM_PODS, *entries(masquerade_to="203.0.113.0/24")) == 0
    assert watched.entries() == before
