"""nf_tables' own events: what somebody does to ours is undone at once, and what is not ours is no news."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from kilo.bus import Loop
from kilo.config import Config
from kilo.log import Logger
from kilo.netctl.firewall import Firewall
from kilo.netctl.firewall.nft_events import FIGHT, NftEvents
from kilo.netctl.reconcile import Outcome
from tests.clock import Given
from tests.integration.netctl.firewall.hosts import Namespace, entries, policy

SAMPLE = entries(
    masquerade_from="10.2.0.0/24", no_masquerade_to="10.2.0.0/24 10.2.1.0/24", forward_accept_to="10.2.0.0/24"
)
SETTLE = 0.03
OTHERS = (
    "add table ip other; add chain ip other KILO-NAT; add rule ip other KILO-NAT accept",
    "add table inet kilo; add chain inet kilo postrouting",
    "add table ip nat; add chain ip nat KUBE-X; add rule ip nat KUBE-X accept",
)
"""Tables and chains that are not ours; the last makes a table that could have been."""


class Watching:
    """A firewall that is watched as the worker does, in a thread of its own inside a host."""

    def __init__(self, host: Namespace) -> None:
        self.looks: list[float] = []
        """When it was told to look."""
        self.outcomes: list[Outcome] = []
        self._host = host
        self._started: Future[Loop] = Future()
        self._end = host.start(self._run)
        self._loop = self._started.result(10)

    def _run(self) -> None:
        loop = Loop()
        firewall = Firewall(Config(firewall="nftables"), Logger("netctl", "none"))

        def go() -> None:
            firewall.load()
            self.outcomes += firewall.apply() + firewall.prune()

        def drifted() -> None:
            self.looks.append(time.monotonic())
            loop.call_later(SETTLE, go)

        firewall.watch(loop, drifted)
        firewall.load()
        firewall.update({item.key: item for item in (policy(guard=True, forward=True), *SAMPLE)}, [])
        self.outcomes += firewall.apply() + firewall.prune()
        self._started.set_result(loop)
        loop.run()
        firewall.close()
        loop.close()

    def close(self) -> None:
        self._loop.stop()
        self._end.result(10)

    def nft(self, command: str) -> str:
        return self._host.beside("nft", command)

    def eventually(self, condition: Callable[[], bool], limit: float = 1.0) -> float:
        """Seconds until ``condition`` holds, which must be fewer than ``limit``."""
        with Given() as clock:
            while not condition():
                assert clock.seconds < limit
                time.sleep(0.01)
        return clock.seconds


@pytest.fixture
def watching(host: Namespace) -> Iterator[Watching]:
    made = Watching(host)
    yield made
    made.close()


@pytest.mark.parametrize(
    "command",
    [
        "flush ruleset",
        "delete table ip6 kilo",
        "flush chain ip kilo postrouting",
        "delete element ip kilo no-masquerade-to { 10.2.1.0/24 }",
        "add element ip kilo masquerade-from { 192.0.2.0/24 }",
        "add chain ip kilo mine",
    ],
)
def test_what_somebody_changes_of_ours_is_back_within_a_second(watching: Watching, command: str) -> None:
    whole = watching.nft("list ruleset")
    watching.nft(command)
    watching.eventually(lambda: watching.nft("list ruleset") == whole)
    assert not [outcome for outcome in watching.outcomes if outcome.error]
    watching.eventually(lambda: watching.outcomes[-1].repair)


def test_our_rules_in_the_chains_of_iptables_are_back_within_a_second(
    host: Namespace, watching: Watching
) -> None:
    def ours() -> int:
        return host.beside("iptables-nft", "-S", "FORWARD").count("Kilo: ")

    host.beside("iptables-nft", "-P", "FORWARD", "DROP")
    watching.eventually(lambda: ours() == 2)
    host.beside("iptables-nft", "-F", "FORWARD")
    watching.eventually(lambda: ours() == 2)
    assert not [outcome for outcome in watching.outcomes if outcome.error]


def test_what_is_not_ours_and_what_we_do_ourselves_is_no_news(watching: Watching) -> None:
    for command in OTHERS:
        watching.nft(command)
    watching.eventually(lambda: bool(watching.looks), 5.0)
    time.sleep(0.2)
    assert len(watching.looks) == 1, "table ip nat, where the Go agent's rules may come"
    watching.nft("delete element ip kilo no-masquerade-to { 10.2.1.0/24 }")
    watching.eventually(lambda: len(watching.looks) == 2 and watching.outcomes[-1].repair)
    time.sleep(0.2)
    assert len(watching.looks) == 2, "the repair makes events too"


def test_somebody_who_undoes_every_repair_is_told_of_and_not_fought(watching: Watching) -> None:
    element = "ip kilo no-masquerade-to { 10.2.1.0/24 }"
    for _ in range(FIGHT):
        watching.nft(f"delete element {element}")
        watching.eventually(lambda: "10.2.1.0/24" in watching.nft("list ruleset"))
    before, began = len(watching.looks), time.monotonic()
    watching.nft(f"delete element {element}")
    watching.eventually(lambda: "10.2.1.0/24" in watching.nft("list ruleset"), 3)
    assert watching.looks[before] - began >= 1, "it is left alone for a second"
    (told,) = {(outcome.key, outcome.error) for outcome in watching.outcomes if outcome.error}
    assert told[0] == "nftables/fight" and "somebody undoes what we do" in told[1]


def test_events_that_were_lost_are_news(host: Namespace) -> None:
    loop, news = Loop(), []
    host.at_end.callback(loop.close)
    events = NftEvents(lambda: 0, time.monotonic, buffer=4096)
    host.call(lambda: events.watch(loop, lambda: news.append(1)))
    host.at_end.callback(events.close)
    loop.run_for(0.05)
    assert not news
    elements = ", ".join(str(port) for port in range(1, 2000))
    host.run(
        "nft", f"add table ip x; add set ip x s {{ type inet_service; }}; add element ip x s {{ {elements} }}"
    )
    loop.run_for(0.05)
    assert news == [1]
    host.run("nft", "add table ip kilo")
    loop.run_for(0.05)
    assert news == [1, 1], "and it goes on"
