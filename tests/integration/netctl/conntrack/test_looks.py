"""When the kernel is asked about flows, and what if it refuses."""

from __future__ import annotations

import os
import time

import pytest

from kilo.log import Logger
from kilo.netctl import conntrack
from kilo.netctl.netlink.listing import Listing
from kilo.netctl.netlink.socket import Message
from tests.integration.netctl.capability import without_net_admin
from tests.integration.netctl.conntrack.watched import FRIENDS, FROM_PODS, Stream, Watched
from tests.integration.netctl.firewall.hosts import HOST, KNOWN, STRANGER, Hosts, entries, policy


def test_at_rest_nobody_is_asked(wired: Hosts, watched: Watched) -> None:
    watched.plan(policy(), *FROM_PODS)
    with Stream(wired, STRANGER) as stream:
        stream.seen()
        for _ in range(3):
            watched.agent.resync()
            wired.host.call(lambda: watched.flows.after_pass(()))
            assert not watched.flows.looking
        second = Watched(wired.host, watched.agent.kind)
        second.agent.plan(policy(), *FROM_PODS)
        wired.host.call(lambda: second.flows.after_pass(()))
        assert not second.flows.looking, "a start that finds everything as it should be"


def test_looks_are_not_closer_together_than_they_may_be(
    wired: Hosts, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "_PAUSE", 0.5)
    watched.plan(policy(), *FROM_PODS)
    with Stream(wired, KNOWN) as stream:
        stream.seen()
        began = time.monotonic()
        watched.plan(*FRIENDS)
        watched.plan(without=tuple(FRIENDS))
        assert time.monotonic() - began > 0.5
        assert stream.seen() == HOST


def test_what_the_kernel_refuses_is_told_once_and_costs_nothing_else(wired: Hosts) -> None:
    read, write = os.pipe()
    watched = Watched(wired.host, log=Logger("netctl", "info", write))
    with Stream(wired, KNOWN) as stream:
        stream.seen()
        for items in ([policy(), *FROM_PODS], FRIENDS, entries(no_masquerade_to="10.2.7.0/24")):
            watched.agent.plan(*items)
            assert wired.host.call(lambda: without_net_admin(watched.look)) == 0
        os.close(write)
        with open(read) as lines:
            assert lines.read().count("flows may keep to their old way") == 1


@pytest.mark.parametrize("interrupted", [1, 1000])
def test_listing_that_was_interrupted_is_made_again_a_few_times(
    wired: Hosts, watched: Watched, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    """An entry that is missing from it would keep to its old way."""
    made: list[int] = []

    class Interrupted(Listing):
        def read(self) -> tuple[list[Message], bool]:
            messages, last = super().read()
            if not made:
                messages = []
            if last:
                made.append(len(made))
                self.consistent = len(made) > interrupted
            return messages, last

    watched.plan(policy(), *FROM_PODS)
    with Stream(wired, KNOWN) as stream:
        stream.seen()
        monkeypatch.setattr(conntrack, "Listing", Interrupted)
        assert watched.plan(*FRIENDS) == 1
        assert len(made) == (2 if interrupted == 1 else conntrack.LISTING_TRIES)
