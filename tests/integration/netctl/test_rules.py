"""Policy rules in a real kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from kilo.model.plan import PlanItem, Rule
from kilo.netctl.netlink.messages import GROUPS_RULE
from kilo.netctl.netlink.socket import NETLINK_ROUTE, Events, Netlink
from kilo.netctl.reconcile import Outcome
from kilo.netctl.rules import Rules
from tests.integration.netctl.hosts import Host, ip, lines

FROM_PODS = Rule(1107, "10.2.0.0/24", "10.1.0.11/32")
FROM_TUNNEL = Rule(1107, "", "10.1.0.11/32", "wireguard")
STANDARD = ["0: from all lookup local", "32766: from all lookup main", "32767: from all lookup default"]


@pytest.fixture
def rules(host: Host) -> Iterator[Rules]:
    with contextlib.closing(Netlink()) as netlink:
        yield Rules(netlink, "kilo0")


def run(rules: Rules, *items: Rule, remove: tuple[str, ...] = ()) -> list[Outcome]:
    upserts: dict[str, PlanItem] = {item.key: item for item in items}
    rules.update(upserts, remove)
    rules.load()
    return rules.apply() + rules.prune()


def test_rules_stand_before_the_main_table_and_go_when_not_wanted(rules: Rules) -> None:
    assert not [o for o in run(rules, FROM_PODS, FROM_TUNNEL, Rule(1107, "", "fd00::11/128")) if o.error]
    assert lines("rule") == [
        STANDARD[0],
        "1107: from 10.2.0.0/24 to 10.1.0.11 lookup 1107 proto 171",
        "1107: from all to 10.1.0.11 iif kilo0 [detached] lookup 1107 proto 171",
        *STANDARD[1:],
    ]
    assert "1107: from all to fd00::11 lookup 1107 proto 171" in lines("-6 rule")
    assert run(rules) == []
    run(rules, remove=(FROM_PODS.key, "rule/1107//fd00::11/128/"))
    assert lines("rule") == [
        STANDARD[0],
        "1107: from all to 10.1.0.11 iif kilo0 [detached] lookup 1107 proto 171",
        *STANDARD[1:],
    ]
    assert [line for line in lines("-6 rule") if "1107" in line] == []


def test_takes_over_the_go_agents_and_leaves_others(rules: Rules) -> None:
    ip("rule add from 10.2.0.0/24 to 10.1.0.11/32 lookup 1107 pref 32765")
    ip("rule add to 10.1.0.99/32 lookup 1107 pref 32764")
    ip("rule add to 10.1.0.98/32 iif other lookup 1107 pref 32763")
    ip("rule add to 10.1.0.97/32 lookup 99 pref 32762")
    ip("rule add to 10.1.0.96/32 lookup 1107 pref 32761 protocol 33")
    outcomes = run(rules, FROM_PODS)
    assert not [o for o in outcomes if o.error]
    assert lines("rule")[1:-2] == [
        "1107: from 10.2.0.0/24 to 10.1.0.11 lookup 1107 proto 171",
        "32761: from all to 10.1.0.96 lookup 1107 proto 33",
        "32762: from all to 10.1.0.97 lookup 99",
    ]
    assert run(rules) == []


def test_a_rule_that_stands_twice_is_left_once(rules: Rules) -> None:
    run(rules, FROM_PODS)
    ip("rule add from 10.2.0.0/24 to 10.1.0.11/32 lookup 1107 pref 50")
    run(rules)
    assert lines("rule")[1:-2] == ["1107: from 10.2.0.0/24 to 10.1.0.11 lookup 1107 proto 171"]


def test_events_tell_of_a_rule_that_went(rules: Rules) -> None:
    with contextlib.closing(Events(NETLINK_ROUTE, GROUPS_RULE)) as events:
        run(rules, FROM_PODS, FROM_TUNNEL)
        assert not any(map(rules.take, events.read(100)))
        ip("rule add to 10.77.0.1/32 lookup 5 pref 9")
        assert not any(map(rules.take, events.read(100)))
        ip("rule del pref 1107 from 10.2.0.0/24")
        assert any(map(rules.take, events.read(100)))
        assert rules.apply() == [Outcome(FROM_PODS.key, repair=True)]
        assert len(lines("rule")) == 6


def test_clean_up(rules: Rules) -> None:
    run(rules, FROM_PODS, FROM_TUNNEL)
    ip("rule add to 10.1.0.99/32 lookup 1107 pref 32764")
    rules.clean_up()
    assert lines("rule") == STANDARD
