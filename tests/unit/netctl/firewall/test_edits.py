"""Edits, applied to a model of a table: ours as wanted, those of others as they were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kilo.netctl.firewall.edits import Create, Delete, Drop, Edit, Flush, Insert, edits, is_ours
from kilo.netctl.firewall.layout import FAMILIES, Entry, Table, addresses, comment
from kilo.netctl.firewall.rules import Chain, Layout

ANY = addresses(FAMILIES[4], "src", b"")


def ours(name: str) -> Entry:
    return Entry(ANY, (comment(f"Kilo: {name}"),), "ACCEPT")


def foreign(name: str) -> Entry:
    return Entry(ANY, (comment(name),), "ACCEPT")


def applied(table: Table, todo: list[Edit]) -> Table:
    """The table that a kernel would have after ``todo``."""
    result = Table({k: list(v) for k, v in table.hooks.items()}, {k: list(v) for k, v in table.ours.items()})
    for edit in todo:
        if isinstance(edit, Create):
            assert edit.chain not in result.ours
            result.ours[edit.chain] = []
            continue
        chain = result.ours[edit.chain] if edit.chain in result.ours else result.hooks[edit.chain]
        if isinstance(edit, Delete):
            del chain[edit.position]
        elif isinstance(edit, Insert):
            assert edit.position <= len(chain)
            chain.insert(edit.position, edit.entry)
        elif isinstance(edit, Flush):
            chain.clear()
        elif isinstance(edit, Drop):
            assert not chain
            del result.ours[edit.chain]
    return result


RULES = st.sampled_from("abcd").map(ours)
MIXED = st.lists(RULES | st.sampled_from("vwxyz").map(foreign), max_size=8)
TABLES = st.builds(
    Table,
    st.fixed_dictionaries({"INPUT": MIXED, "FORWARD": MIXED}),
    st.dictionaries(st.sampled_from(["KILO-NAT", "KILO-IPIP", "KILO-OLD"]), MIXED),
)
WANTED = st.lists(RULES, max_size=4).map(tuple)
LAYOUTS: st.SearchStrategy[Layout] = st.fixed_dictionaries(
    {},
    optional={
        "INPUT": st.builds(Chain, st.just("last"), WANTED),
        "FORWARD": st.builds(Chain, st.just("first"), WANTED),
        "KILO-NAT": st.builds(Chain, st.just("whole"), WANTED),
    },
)


@given(TABLES, LAYOUTS)
def test_ours_become_what_is_wanted_and_others_stay_in_their_order(table: Table, layout: Layout) -> None:
    result = applied(table, edits(table, layout))
    for name, rules in result.hooks.items():
        wanted = layout[name].rules if name in layout else ()
        assert tuple(filter(is_ours, rules)) == wanted
        kept = [rule for rule in rules if not is_ours(rule)]
        assert kept == [rule for rule in table.hooks[name] if not is_ours(rule)]
    assert {name: tuple(rules) for name, rules in result.ours.items()} == {
        name: chain.rules for name, chain in layout.items() if chain.place == "whole"
    }
    assert edits(result, layout) == []


def test_rules_of_ours_that_stay_are_not_touched() -> None:
    a, b, c, d = (ours(name) for name in "abcd")
    table = Table({}, {"KILO-NAT": [a, b, d]})
    assert edits(table, {"KILO-NAT": Chain("whole", (a, b, c, d))}) == [Insert("KILO-NAT", 2, c)]
    assert edits(table, {"KILO-NAT": Chain("whole", (a, d))}) == [Delete("KILO-NAT", 1)]


def test_new_rules_stand_first_or_last_or_where_old_ones_were() -> None:
    x, y = foreign("x"), foreign("y")
    wanted = (ours("a"), ours("b"))

    def chain(place: str, *rules: Entry) -> list[Entry]:
        table = Table({"INPUT": list(rules)}, {})
        layout = {"INPUT": Chain("first" if place == "first" else "last", wanted)}
        return applied(table, edits(table, layout)).hooks["INPUT"]

    assert chain("first", x, y) == [*wanted, x, y]
    assert chain("last", x, y) == [x, y, *wanted]
    assert chain("first", x, ours("old"), y) == [x, *wanted, y]
    assert chain("last", x, ours("old"), y, ours("older")) == [x, *wanted, y]
    assert chain("last", x, wanted[0], y) == [x, *wanted, y]
    assert chain("last", x, wanted[1], y) == [x, *wanted, y]
