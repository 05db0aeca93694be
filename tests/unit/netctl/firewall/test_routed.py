"""Members of sets that count only while a route to them can stand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kilo.model.plan import FirewallSet, PlanItem, Route, SetEntry, route_key
from kilo.netctl.firewall.routed import RoutedEntries

OFFICE, HALF = SetEntry("no_masquerade_to", "10.6.0.0/24", "10.6.0.0/24"), "10.6.0.0/25"
FROM_OFFICE = SetEntry("masquerade_from", "10.6.0.0/24", "10.6.0.0/24")
WAY = Route("10.6.0.0/24", "wireguard")


class Sets:
    """What counts."""

    def __init__(self, *items: PlanItem) -> None:
        self.members: set[tuple[FirewallSet, str]] = set()
        self.routed = RoutedEntries(
            lambda kind, network: self.members.add((kind, network)),
            lambda kind, network: self.members.discard((kind, network)),
        )
        self.plan(*items)

    def plan(self, *items: PlanItem, remove: tuple[str, ...] = ()) -> None:
        for key in remove:
            self.routed.forget(key)
        for item in items:
            if isinstance(item, SetEntry) and not self.routed.keep(item):
                self.members.add((item.set, item.network))
        self.routed.route(items, remove)


def test_entry_with_a_planned_route_counts() -> None:
    assert Sets(OFFICE, FROM_OFFICE, WAY).members == {
        ("no_masquerade_to", "10.6.0.0/24"),
        ("masquerade_from", "10.6.0.0/24"),
    }


def test_entry_without_its_route_does_not_count() -> None:
    sets = Sets(OFFICE)
    assert not sets.members
    sets.plan(WAY)
    assert sets.members == {("no_masquerade_to", "10.6.0.0/24")}
    sets.plan(remove=(WAY.key,))
    assert not sets.members


def test_entry_whose_route_is_only_in_another_table_does_not_count() -> None:
    assert not Sets(OFFICE, Route("10.6.0.0/24", "tunnel", "10.0.0.1", table=1107)).members


def test_entry_whose_route_cannot_stand_counts_again_when_it_can() -> None:
    sets = Sets(OFFICE, FROM_OFFICE, WAY)
    assert sets.routed.leave_out({"10.6.0.0/24"})
    assert not sets.members
    assert not sets.routed.leave_out({"10.6.0.0/24"}), "no news"
    assert sets.routed.leave_out(set())
    assert len(sets.members) == 2


def test_entry_that_is_a_part_of_a_network_goes_with_the_route_to_all_of_it() -> None:
    sets = Sets(SetEntry("no_masquerade_to", HALF, "10.6.0.0/24"), WAY)
    sets.routed.leave_out({"10.6.0.0/24"})
    assert not sets.members


def test_entry_that_needs_no_route_always_counts() -> None:
    sets = Sets(SetEntry("no_masquerade_to", "10.6.0.0/24"), WAY)
    sets.routed.leave_out({"10.6.0.0/24"})
    assert sets.members == {("no_masquerade_to", "10.6.0.0/24")}


def test_entry_that_comes_to_need_a_route_goes_with_it() -> None:
    sets = Sets(SetEntry("no_masquerade_to", "10.6.0.0/24"), WAY)
    sets.routed.leave_out({"10.6.0.0/24"})
    sets.plan(OFFICE)
    assert not sets.members
    sets.plan(SetEntry("no_masquerade_to", "10.6.0.0/24"))
    assert sets.members


NETWORKS = ["10.6.0.0/24", "10.7.0.0/24"]
ENTRIES = st.builds(
    SetEntry,
    st.sampled_from(["no_masquerade_to", "masquerade_from"]),
    st.sampled_from([*NETWORKS, HALF]),
    st.sampled_from(["", *NETWORKS]),
)
ITEMS = ENTRIES | st.builds(Route, st.sampled_from(NETWORKS), st.just("wireguard"))
CHANGES = st.tuples(
    st.lists(ITEMS, max_size=5, unique_by=lambda item: item.key), st.sets(st.sampled_from(NETWORKS))
)


@given(st.lists(CHANGES, max_size=5))
def test_any_order_of_plans_and_absences_counts_what_the_last_ones_say(
    steps: list[tuple[list[PlanItem], set[str]]],
) -> None:
    sets, plan = Sets(), dict[str, PlanItem]()
    for items, absent in steps:
        new = {item.key: item for item in items}
        gone = tuple(plan.keys() - new.keys())
        for key in gone:
            if isinstance(old := plan[key], SetEntry) and not old.route:
                sets.members.discard((old.set, old.network))
        sets.plan(*(item for item in items if plan.get(item.key) != item), remove=gone)
        sets.routed.leave_out(absent)
        plan = new
        assert sets.members == {
            (e.set, e.network)
            for e in items
            if isinstance(e, SetEntry)
            and (not e.route or (route_key(e.route) in plan and e.route not in absent))
        }
