from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.bus import Loop
from kilo.watcher import resolver as module
from kilo.watcher.resolver import IN_FLIGHT, Resolver, choose, lookup
from tests.feeding import PATIENCE


class Zone:
    """A resolver of names whose answers a test sets; a name may hang until it is released."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str]] = {}
        self.hanging: dict[str, threading.Event] = {}
        self.asked: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def ask(self, name: str) -> list[str]:
        with self._lock:
            self.asked.append(name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if hanging := self.hanging.get(name):
                hanging.wait(60)
            answers = self.answers.get(name)
            if answers is None:
                raise OSError(-2, "Name or service not known")
            return answers
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def run_until(loop: Loop, condition: Callable[[], object]) -> None:
    """Run the loop until ``condition`` is true; fails after a while."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE} s: {condition}"
        loop.run_for(0.02)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "resolver"]


def test_the_choice_is_the_lowest_ipv4_then_ipv6() -> None:
    assert choose(["2001:db8::1", "203.0.113.9", "203.0.113.10"], "") == "203.0.113.9"
    assert choose(["2001:db8::2", "2001:db8::1"], "") == "2001:db8::1"
    assert choose([], "") == ""
    assert choose(["fe80::1%eth0"], "") == "", "a zone is of no use to WireGuard"


def test_the_choice_stays_while_it_is_among_the_answers() -> None:
    assert choose(["203.0.113.1", "203.0.113.9"], "203.0.113.9") == "203.0.113.9"
    assert choose(["203.0.113.1"], "203.0.113.9") == "203.0.113.1"


@given(st.lists(st.ip_addresses().filter(lambda ip: getattr(ip, "ipv4_mapped", None) is None), min_size=1))
def test_the_choice_does_not_depend_on_the_order(answers: list[object]) -> None:
    texts = [str(a) for a in answers]
    assert choose(texts, "") == choose(reversed(texts), "")


def test_the_system_resolver_is_asked() -> None:
    assert "127.0.0.1" in lookup("localhost")
    with pytest.raises(OSError, match=r"not known|resolution"):
        lookup("a.name.that.is.invalid")


def test_a_name_is_resolved_and_told_once(loop: Loop) -> None:
    zone = Zone()
    told: list[str] = []
    zone.answers["a.example"] = ["203.0.113.1"]
    resolver = Resolver(loop, 0.05, told.append, zone.ask)
    assert resolver.address("a.example") == ""
    assert resolver.pending
    run_until(loop, lambda: len(zone.asked) > 2)  # asked again every period
    assert resolver.address("a.example") == "203.0.113.1"
    assert told == ["a.example"]
    assert not resolver.pending


def test_the_last_good_answer_is_kept(loop: Loop) -> None:
    zone = Zone()
    told: list[str] = []
    zone.answers["a.example"] = ["203.0.113.1"]
    resolver = Resolver(loop, 0.05, told.append, zone.ask)
    run_until(loop, lambda: resolver.address("a.example"))
    del zone.answers["a.example"]
    run_until(loop, lambda: resolver.failures)
    assert resolver.address("a.example") == "203.0.113.1"
    assert resolver.failures == {"a.example": "Name or service not known"}
    assert told == ["a.example"] * 2
    zone.answers["a.example"] = ["203.0.113.2"]
    run_until(loop, lambda: not resolver.failures)
    assert resolver.address("a.example") == "203.0.113.2"


def test_a_name_that_hangs_times_out_and_costs_the_others_nothing(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    zone = Zone()
    told: list[str] = []
    zone.hanging["slow.example"] = threading.Event()
    zone.answers |= {"slow.example": ["203.0.113.1"], "a.example": ["203.0.113.2"]}
    resolver = Resolver(loop, 0.05, told.append, zone.ask)
    resolver.address("slow.example")
    resolver.address("a.example")
    run_until(loop, lambda: zone.asked.count("a.example") > 4)
    run_until(loop, lambda: resolver.failures == {"slow.example": "timed out"})
    assert resolver.address("a.example") == "203.0.113.2"
    assert zone.asked.count("slow.example") == 1, "not asked again while it is being asked"
    zone.hanging.pop("slow.example").set()
    run_until(loop, lambda: not resolver.failures)
    assert resolver.address("slow.example") == "203.0.113.1"


def test_few_names_are_asked_at_once_and_all_of_them_in_the_end(loop: Loop) -> None:
    zone = Zone()
    gate = threading.Event()
    names = [f"n{i}.example" for i in range(50)]
    zone.hanging = dict.fromkeys(names, gate)
    zone.answers = {name: ["203.0.113.1"] for name in names}
    resolver = Resolver(loop, 30, lambda name: None, zone.ask)
    for name in names:
        resolver.address(name)
    run_until(loop, lambda: zone.most_at_once >= IN_FLIGHT)
    loop.run_for(0.1)
    assert zone.most_at_once == IN_FLIGHT
    gate.set()
    run_until(loop, lambda: {resolver.address(name) for name in names} == {"203.0.113.1"})
    run_until(loop, lambda: not threads())  # none stays behind


def test_names_no_longer_wanted_are_not_asked_for(loop: Loop) -> None:
    zone = Zone()
    resolver = Resolver(loop, 0.05, lambda name: None, zone.ask)
    resolver.address("gone.example")
    run_until(loop, lambda: resolver.failures)
    resolver.keep(set())
    assert resolver.failures == {}
    run_until(loop, lambda: not threads())  # one may be asking still
    asked = len(zone.asked)
    loop.run_for(0.2)
    assert len(zone.asked) == asked


def test_all_addresses_of_a_pinned_name_are_known_the_lowest_first(loop: Loop) -> None:
    zone, told = Zone(), list[str]()
    zone.answers["api.example"] = ["2001:db8::1", "203.0.113.10", "203.0.113.9", "fe80::1%eth0"]
    resolver = Resolver(loop, 0.05, told.append, zone.ask)
    assert resolver.pin("api.example") == ()
    assert resolver.pending
    run_until(loop, lambda: told)
    assert resolver.pin("api.example") == ("203.0.113.9", "203.0.113.10", "2001:db8::1")
    zone.answers["api.example"] = ["203.0.113.9", "203.0.113.11"]
    run_until(loop, lambda: len(told) > 1)  # also where the one that is chosen stays
    assert resolver.pin("api.example") == ("203.0.113.9", "203.0.113.11")
    assert told == ["api.example"] * 2
    del zone.answers["api.example"]
    run_until(loop, lambda: resolver.failures)
    assert resolver.pin("api.example") == ("203.0.113.9", "203.0.113.11"), "the last good answer"


def test_a_name_that_is_known_already_is_pinned_at_once_and_for_good(loop: Loop) -> None:
    zone = Zone()
    zone.answers["api.example"] = ["203.0.113.10", "203.0.113.9"]
    resolver = Resolver(loop, 30, lambda name: None, zone.ask)
    run_until(loop, lambda: resolver.address("api.example"))
    assert resolver.pin("api.example") == ("203.0.113.9", "203.0.113.10")
    resolver.keep(set())
    assert resolver.pin("api.example") == ("203.0.113.9", "203.0.113.10")
    assert zone.asked == ["api.example"]
