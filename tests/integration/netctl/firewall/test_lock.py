"""The xtables lock that another program holds: it is waited for, never gone past, and never for long."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kilo.bus import Loop
from kilo.log import Logger
from kilo.netctl.firewall import lock, reconciler
from kilo.netctl.firewall.lock import XtablesLock
from tests.feeding import eventually
from tests.integration.netctl.firewall.hosts import Agent, Namespace, entries, errors, held, policy

SAMPLE = entries(masquerade_from="10.2.0.0/24", no_masquerade_to="10.2.0.0/24")
TABLES = {"nat-v4", "nat-v6", "mangle-v4", "mangle-v6"}


class Waited:
    """The lock's clock, which moves when the lock waits, and by nothing else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: self.seconds, sleep=self._sleep))

    def _sleep(self, seconds: float) -> None:
        self.seconds += seconds


def is_there(host: Namespace) -> bool:
    return "KILO-NAT" in host.beside("iptables-legacy-save")


def test_a_pass_does_not_wait_for_long_and_says_what_it_waits_for(
    host: Namespace, xtables_lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(host)
    agent.resync()
    waited = Waited(monkeypatch)
    with held(xtables_lock):
        outcomes = agent.plan(policy(), *SAMPLE)
        assert 0.05 <= waited.seconds < 0.1, "for all tables together"
        told = {outcome.key: outcome.error for outcome in outcomes if outcome.waits}
        assert told == {key: f"{key}: another program holds {xtables_lock}" for key in TABLES}
        assert not agent.backend.settled()
        assert set(errors(agent.step())) == set(told.values()), "every pass tries, there is no longer wait"
        assert not is_there(host)
    assert {outcome.key for outcome in agent.step() if not outcome.error} == TABLES
    assert agent.backend.settled() and agent.resync() == []


def test_rules_are_there_as_soon_as_the_lock_is_free(host: Namespace, xtables_lock: Path) -> None:
    """Nobody makes a pass of his own accord; and the loop serves others meanwhile."""
    agent = Agent(host)
    agent.resync()
    rounds: list[float] = []
    begun: list[float] = []
    seen: list[list[str]] = []
    loop = Loop()

    def make_a_pass() -> None:
        begun.append(time.monotonic())
        seen.append(errors(agent.firewall.apply() + agent.firewall.prune()))

    def run() -> None:
        agent.firewall.watch(loop, make_a_pass)
        loop.call_every(0.02, lambda: rounds.append(time.monotonic()))
        loop.call_soon(make_a_pass)
        loop.run()
        agent.firewall.close()
        loop.close()

    items = {item.key: item for item in (policy(), *SAMPLE)}

    def is_smooth() -> bool:
        """Whether the loop served all the time for 0.8 s: one that waits for the lock never does."""
        now = time.monotonic()
        since = now - 0.8
        times = [since, *(t for t in [*rounds] if since < t < now), now]
        longest = max(b - a for a, b in itertools.pairwise(times))
        return begun[0] < since and longest < 0.3

    agent.firewall.update(items, [])
    try:
        with held(xtables_lock):
            running = host.start(run)
            eventually(lambda: len(seen) == 1)
            eventually(is_smooth)
            assert len(seen) == 1 and len(seen[0]) == len(TABLES)
            assert not is_there(host)
        free = time.monotonic()
        eventually(lambda: len(seen) == 2 and is_there(host))
        assert sum(free < t < begun[1] for t in rounds) < 25, "rounds of 0.02 s"
    finally:
        loop.stop()
    running.result()
    assert len(seen) == 2 and seen[1] == []


def test_the_end_waits_longer(host: Namespace, xtables_lock: Path) -> None:
    agent = Agent(host)
    agent.plan(policy(), *SAMPLE)
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(xtables_lock))
        ending = threading.Timer(0.7, stack.close)
        began = time.monotonic()
        ending.start()
        assert not errors(agent.clean_up())
        assert time.monotonic() - began > 0.6
        ending.join()
    assert not is_there(host)


def test_at_the_end_a_lock_that_stays_held_is_an_error(
    host: Namespace, xtables_lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "CLEAN_UP_PATIENCE", 0.3)
    waited = Waited(monkeypatch)
    for flag in ("legacy", "nftables"):
        agent = Agent(host, flag="legacy")
        agent.plan(policy(), *SAMPLE)
        agent = Agent(host, flag=flag)
        with held(xtables_lock):
            before = waited.seconds
            told = "; ".join(errors(agent.clean_up()))
            assert 0.3 <= waited.seconds - before < 1.5
        assert told.count(f"another program holds {xtables_lock}") >= 4
        assert is_there(host)
        assert not errors(agent.clean_up())
        assert not is_there(host)


def test_nobody_else_gets_the_lock_while_we_hold_it(xtables_lock: Path) -> None:
    with xtables_lock.open() as other:
        with XtablesLock(Logger("netctl", "none")).held(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_out_of_reach_is_logged_once(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", "/proc/nowhere/xtables.lock")
    read, write = os.pipe()
    with open(read) as lines:
        agent = Agent(host, log=Logger("netctl", "warn", write))
        assert not errors(agent.plan(policy(), *SAMPLE))
        os.close(write)
        assert lines.read().count("without the xtables lock") == 1
