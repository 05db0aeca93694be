"""Requests for a chain of the host's, applied to a model of one as the kernel applies them."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from kilo.netctl.firewall.backend import member_of
from kilo.netctl.firewall.nft_edits import put_host_right
from kilo.netctl.firewall.nft_expressions import (
    COUNTER,
    Form,
    Rule,
    form_of,
    in_network,
    in_set,
    read_form,
    verdict,
    xt_comment,
)
from kilo.netctl.firewall.nft_layout import HostRules
from kilo.netctl.firewall.nft_messages import DELRULE, HEADER, NEWRULE
from kilo.netctl.firewall.nft_state import Found, HostRule
from kilo.netctl.netlink.attributes import parse
from kilo.netctl.netlink.socket import Request

PLACE = ("filter", "FORWARD")
HANDLE, EXPRESSIONS, POSITION = 3, 4, 6


def rule(name: str) -> Rule:
    return Rule((xt_comment(f"Kilo: {name}"), COUNTER, verdict("accept")))


RULES = {name: rule(name) for name in "abcd"}
Chain = list[tuple[int, Form | None]]
"""Handle and form of each rule; None: not ours."""


def applied(chain: Chain, requests: list[Request]) -> Chain:
    result = list(chain)
    for number, request in enumerate(requests):
        found = parse(request.body, HEADER, len(request.body))
        handles = [handle for handle, _ in result]
        if request.kind == DELRULE:
            del result[handles.index(struct.unpack(">Q", found[HANDLE])[0])]
            continue
        assert request.kind == NEWRULE
        form = read_form(found[EXPRESSIONS], b"")
        at = len(result)
        if POSITION in found:
            at = handles.index(struct.unpack(">Q", found[POSITION])[0])
        result.insert(at, (1000 + number, form))
    return result


MIXED = st.lists(st.sampled_from("abcd.").map(lambda n: form_of(RULES[n]) if n != "." else None), max_size=8)
WANTED = st.lists(st.sampled_from("abcd"), max_size=4, unique=True)


@given(MIXED, WANTED, st.sampled_from(["first", "last"]))
def test_ours_as_wanted_and_those_of_others_as_they_were(
    forms: list[Form | None], names: list[str], place: str
) -> None:
    before: Chain = list(enumerate(forms, 1))
    wanted = HostRules("first" if place == "first" else "last", tuple(RULES[name] for name in names))
    found = Found(host={PLACE: [HostRule(*item) for item in before]})
    works = put_host_right(4, found, {PLACE: wanted}, ())
    after = applied(before, [request for work in works for request in work.requests])
    assert [form for _, form in after if form] == [form_of(rule) for rule in wanted.rules]
    assert [item for item in after if not item[1]] == [item for item in before if not item[1]]
    assert bool(works) == (after != before)
    if works and not any(forms) and forms and names:
        ours = after[: len(names)] if place == "first" else after[-len(names) :]
        assert all(form for _, form in ours)


def test_forms_tell_apart_what_does_something_else() -> None:
    def network(text: str) -> Rule:
        return Rule((*in_network(4, "src", member_of(text)[1]), verdict("accept")))

    rules = [
        *map(network, ("10.0.0.0/8", "10.0.0.0/9", "10.0.0.0/32", "0.0.0.0/0")),
        Rule((*in_network(4, "dst", member_of("10.0.0.0/8")[1]), verdict("accept"))),
        *(Rule((*in_set(4, "src", "s", inverted), verdict("drop"))) for inverted in (False, True)),
        Rule((*in_set(4, "src", "s"), verdict("return"))),
        Rule((*in_set(4, "src", "s"), verdict("return")), "Kilo: why"),
    ]
    assert len({form_of(rule) for rule in rules}) == len(rules)


def test_a_comment_is_the_same_wherever_it_is_kept_and_counters_do_not_count() -> None:
    one = Rule((xt_comment("Kilo: x"), COUNTER, verdict("drop")))
    assert form_of(one) == form_of(Rule((verdict("drop"),), "Kilo: x"))
