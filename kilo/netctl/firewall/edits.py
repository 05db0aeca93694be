"""The fewest edits that turn the rules which a table has into those that are wanted.

Pure. Ours are: chains called KILO-… with all that is in them, and in the hooks' chains every rule
that jumps to one of those or has a comment beginning with "Kilo:", whoever made it: the Go agent
marks its rules the same way. Rules of others are neither moved nor rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from kilo.netctl.firewall.layout import OUR_CHAINS, Entry, Table
from kilo.netctl.firewall.rules import OUR_COMMENTS, Chain, Layout

_NOTHING = Chain("first", ())
E = TypeVar("E")


class Create(NamedTuple):
    chain: str


class Delete(NamedTuple):
    """The rule at ``position``, from 0, goes."""

    chain: str
    position: int


class Insert(NamedTuple, Generic[E]):
    """``entry`` comes to stand at ``position``, from 0."""

    chain: str
    position: int
    entry: E


class Flush(NamedTuple):
    """All rules of the chain go."""

    chain: str


class Drop(NamedTuple):
    """The chain, flushed, goes."""

    chain: str


Edit = Create | Delete | Insert[Entry] | Flush | Drop


def is_ours(entry: Entry) -> bool:
    return entry.target.startswith(OUR_CHAINS) or entry.comment.startswith(OUR_COMMENTS)


def edits(table: Table, layout: Layout) -> list[Edit]:
    """What to do to ``table``, in this order, so that it holds ``layout`` and nothing more of ours."""
    result: list[Edit] = [
        Create(name) for name, chain in layout.items() if chain.place == "whole" and name not in table.ours
    ]
    for name, chain in layout.items():
        if chain.place == "whole":
            rules = table.ours.get(name, [])
            result += splice(name, range(len(rules)), rules, chain.rules, 0)
    for name in table.hooks.keys() | {name for name, chain in layout.items() if chain.place != "whole"}:
        rules, chain = table.hooks.get(name, []), layout.get(name, _NOTHING)
        at = [position for position, rule in enumerate(rules) if is_ours(rule)]
        have = [rules[position] for position in at]
        result += splice(name, at, have, chain.rules, len(rules) if chain.place == "last" else 0)
    unwanted = [name for name in table.ours if name not in layout]
    return [*result, *map(Flush, unwanted), *map(Drop, unwanted)]


def splice(
    chain: str, at: Sequence[int], have: Sequence[E], want: Sequence[E], default: int
) -> Iterator[Delete | Insert[E]]:
    """Replace what differs between the first and the last difference.

    ``have`` stand at the positions ``at``. New rules take the place of old ones, or stand next to
    those that stay; ``default`` is where they go if there is none.
    """
    shorter = min(len(have), len(want))
    same = 0
    while same < shorter and have[same] == want[same]:
        same += 1
    tail = 0
    while tail < shorter - same and have[-1 - tail] == want[-1 - tail]:
        tail += 1
    gone, new = at[same : len(have) - tail], want[same : len(want) - tail]
    for position in reversed(gone):
        yield Delete(chain, position)
    if gone:
        start = gone[0]
    elif same:
        start = at[same - 1] + 1
    else:
        start = at[0] if have else default
    for offset, entry in enumerate(new):
        yield Insert(chain, start + offset, entry)
