"""The fewest requests that turn what nf_tables has into what is wanted.

Pure. Work that stands in one list is done in one transaction. Called by kilo.netctl.firewall.nft.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Literal, NamedTuple

from kilo.model.plan import FirewallSet
from kilo.netctl.firewall.backend import SetId
from kilo.netctl.firewall.edits import Delete, splice
from kilo.netctl.firewall.ipset import name_of
from kilo.netctl.firewall.members import Interval
from kilo.netctl.firewall.nft_expressions import form_of
from kilo.netctl.firewall.nft_intervals import Change, growth, replacement
from kilo.netctl.firewall.nft_layout import TABLE, HostRules, OwnTable, set_name
from kilo.netctl.firewall.nft_messages import (
    delete_chain,
    delete_elements,
    delete_rule,
    delete_set,
    delete_table,
    flush_chain,
    new_chain,
    new_elements,
    new_rule,
    new_set,
    new_table,
)
from kilo.netctl.firewall.nft_state import Found, HostChain, HostRule
from kilo.netctl.netlink.socket import Request

Part = Literal["kilo", "filter", "nat"]
"""Our table, or the host's table filter or nat."""
OWN: Part = "kilo"
PARTS: tuple[Part, ...] = ("kilo", "filter", "nat")
_NO_RULES = HostRules("first", ())


class Look(NamedTuple):
    """What a set shall hold; ``only``: the part that can differ from what it has, None for all of it."""

    wanted: Set[Interval]
    only: Set[Interval] | None = None

    def growth(self, actual: Set[Interval]) -> Change:
        return growth(*self._parts(actual))

    def replacement(self, actual: Set[Interval]) -> Change:
        return replacement(*self._parts(actual))

    def _parts(self, actual: Set[Interval]) -> tuple[Set[Interval], Set[Interval]]:
        """What is wanted and what there is, as far as they have to be compared.

        Where the set was right before ``only`` moved, all that a wanted one overlaps with has moved.
        """
        if self.only is None:
            return self.wanted, actual
        return self.only & self.wanted, self.only & actual


class Work(NamedTuple):
    """Requests that change one object. ``key`` names it in outcomes.

    ``causes``: what of the plan it depends on. ``members``: how a set changes with it.
    """

    part: Part
    key: str
    causes: tuple[SetId | str, ...]
    requests: list[Request]
    members: tuple[FirewallSet, Change] | None = None


def put_right(
    version: int, found: Found, wanted: OwnTable, members: Mapping[FirewallSet, Look]
) -> list[Work]:
    """Our table as it should be, with sets that lack no member; ``members`` has those to look at."""
    anew = found.table and not found.sound
    if not wanted.chains:
        return [_table_work(version, [delete_table(version, TABLE)])] if found.table else []
    sets = {} if anew else found.sets
    before = [delete_table(version, TABLE)] if anew else []
    if anew or not found.table:
        before.append(new_table(version, TABLE))
    fresh = [kind for kind in wanted.sets if kind not in sets]
    before += (new_set(version, TABLE, set_name(kind), number) for number, kind in enumerate(fresh, 1))
    fills = [
        _set_work(version, kind, members[kind].growth(sets.get(kind, set())))
        for kind in wanted.sets
        if kind in members
    ]
    after = _chain_requests(version, {} if anew else found.chains, wanted)
    works = [_table_work(version, before), *fills, _table_work(version, list(after))]
    return [work for work in works if work.requests]


def thin_out(version: int, found: Found, wanted: OwnTable, members: Mapping[FirewallSet, Look]) -> list[Work]:
    """What our table's sets have too much of, and sets that are no longer wanted."""
    works = [
        _set_work(version, kind, members[kind].replacement(found.sets[kind]))
        for kind in reversed(wanted.sets)
        if kind in members and kind in found.sets
    ]
    for kind in found.sets:
        if kind not in wanted.sets and wanted.chains:
            request = delete_set(version, TABLE, set_name(kind))
            works.append(Work(OWN, name_of((kind, version)), ("policy",), [request]))
    return [work._replace(key=f"{work.key}/surplus") for work in works if work.requests]


def table_key(part: Part, version: int) -> str:
    return f"{part}-v{version}"


def _table_work(version: int, requests: list[Request]) -> Work:
    return Work(OWN, table_key(OWN, version), ("policy",), requests)


def _set_work(version: int, kind: FirewallSet, change: Change) -> Work:
    name = set_name(kind)
    requests = [
        *delete_elements(version, TABLE, name, sorted(change.gone)),
        *new_elements(version, TABLE, name, sorted(change.new)),
    ]
    set_id = (kind, version)
    return Work(OWN, name_of(set_id), (set_id, "policy"), requests, (kind, change))


def _chain_requests(version: int, chains: Mapping[str, object], wanted: OwnTable) -> Iterator[Request]:
    """A chain whose rules differ gets all of them anew."""
    for name, chain in wanted.chains.items():
        if name not in chains:
            yield new_chain(version, TABLE, name, chain.hook)
        if chains.get(name, []) != [form_of(rule) for rule in chain.rules]:
            if chains.get(name):
                yield flush_chain(version, TABLE, name)
            for rule in chain.rules:
                yield new_rule(version, TABLE, name, rule)
    surplus = [name for name in chains if name not in wanted.chains]
    yield from (flush_chain(version, TABLE, name) for name in surplus)
    yield from (delete_chain(version, TABLE, name) for name in surplus)


def put_host_right(
    version: int, found: Found, wanted: Mapping[HostChain, HostRules], causes: tuple[SetId | str, ...]
) -> list[Work]:
    """Our rules in the host's chains as they should be; the Go agent's chains, and rules, gone."""
    requests: dict[str, list[Request]] = {"filter": [], "nat": []}
    for place, rules in found.host.items():
        requests[place[0]] += _splice(version, place, rules, wanted.get(place, _NO_RULES))
    for place, left in found.left.items():
        if left.rules:
            requests[place[0]].append(flush_chain(version, *place))
    for place, left in found.left.items():
        if not left.others:
            requests[place[0]].append(delete_chain(version, *place))
    parts: tuple[Part, ...] = ("filter", "nat")
    return [Work(part, table_key(part, version), causes, requests[part]) for part in parts if requests[part]]


def held(found: Found, part: Part) -> list[str]:
    """Chains called KILO-… to which rules of others jump."""
    return [chain for (table, chain), left in found.left.items() if table == part and left.others]


def _splice(version: int, place: HostChain, rules: list[HostRule], wanted: HostRules) -> Iterator[Request]:
    """Requests for one chain, whose positions become handles: a new rule goes before the next that stays."""
    ours = [position for position, rule in enumerate(rules) if rule.form is not None]
    have = [rule.form for rule in rules if rule.form is not None]
    by_form = {form_of(rule): rule for rule in wanted.rules}
    handles = [rule.handle for rule in rules]
    default = len(rules) if wanted.place == "last" else 0
    for edit in splice(place[1], ours, have, [form_of(rule) for rule in wanted.rules], default):
        if isinstance(edit, Delete):
            yield delete_rule(version, *place, handles.pop(edit.position))
        else:
            following = next((handle for handle in handles[edit.position :] if handle), 0)
            yield new_rule(version, *place, by_form[edit.entry], following)
            handles.insert(edit.position, 0)
