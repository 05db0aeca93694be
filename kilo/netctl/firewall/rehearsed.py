"""The firewall's way to the kernel for a rehearsal: it is read, and what would be written is kept here.

``Stage`` holds each object as the kernel has it and as it would be. What is told of both, line by line,
is for people. Used by kilo.netctl.diff.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kilo.log import Logger
from kilo.netctl.firewall import choice, xtables
from kilo.netctl.firewall.access import Access
from kilo.netctl.firewall.edits import Create, Delete, Drop, Edit, Flush, Insert
from kilo.netctl.firewall.ipset import Ipset, IpsetError
from kilo.netctl.firewall.layout import FAMILIES, Entry, Table
from kilo.netctl.firewall.lock import XtablesLock
from kilo.netctl.firewall.nft_picture import Picture, Shown, compared
from kilo.netctl.firewall.nft_socket import NftSocket, Refused
from kilo.netctl.netlink.attributes import ip_text
from kilo.netctl.netlink.socket import Request

_NO_INDEX = 60_000
"""The first number for sets that the kernel has not numbered."""
TableId = tuple[int, str]


class Line(NamedTuple):
    """``sign``: "+" comes, "-" goes, "~" is changed. ``what``: for a person."""

    sign: str
    what: str


@dataclass
class Stage:
    """Legacy tables, ipsets and nf_tables: as read first, and as they would be."""

    tables: dict[TableId, tuple[Table, Table]] = field(default_factory=dict)
    sets: dict[str, tuple[set[bytes] | None, set[bytes] | None]] = field(default_factory=dict)
    nft_before: Picture | None = None
    nft_after: Picture | None = None

    def lines(self) -> Iterator[Line]:
        """What would be changed: sets before the rules that look into them."""
        for name, (members, wanted) in sorted(self.sets.items()):
            if (members is None) != (wanted is None):
                yield Line("-" if wanted is None else "+", f"ipset {name}")
            if wanted is not None:
                have, want = (map(_member, sorted(part)) for part in (members or (), wanted))
                yield from _lines(f"ipset {name}", have, want)
        for (version, name), (before, after) in sorted(self.tables.items()):
            where = f"{'iptables' if version == 4 else 'ip6tables'} {name}"
            yield from _or_anew(where, _table_lines(where, before, after))
        if self.nft_before is not None and self.nft_after is not None:
            before_nft, after_nft = self.nft_before.objects(), self.nft_after.objects()
            for table in sorted(self.nft_after.written):
                where = f"nft {table}"
                yield from _or_anew(where, _lines("nft", before_nft.get(table, ()), after_nft.get(table, ())))


class RehearsedAccess(Access):
    """See kilo.netctl.firewall.access. What it is told to write, it writes to ``stage``."""

    def __init__(self) -> None:
        self.stage = Stage()

    def look(self) -> choice.Seen:
        return choice.look(rehearse=False)

    def nft(self) -> NftSocket:
        return _Nft(self.stage)

    def ipset(self) -> Ipset:
        """What backends take for Ipset."""
        return _Ipset(self.stage)

    def lock(self, log: Logger) -> XtablesLock:
        return _NoLock(log)

    def has_set_match(self) -> bool:
        """Where the kernel knows no xtables yet, the question would run modprobe."""
        known = os.path.exists(f"/proc/thread-self/net/{FAMILIES[4].names_file}")
        return super().has_set_match() if known else True

    def read_table(self, version: int, name: str) -> Table:
        """A table that is not in use is not read, since reading would make it."""
        known = self.stage.tables.get((version, name))
        if known is not None:
            return known[1]
        return xtables.read_table(version, name) if xtables.is_in_use(version, name) else Table()

    def commit(self, version: int, name: str, edits: Iterable[Edit]) -> None:
        found = self.read_table(version, name)
        before = self.stage.tables.get((version, name), (found, found))[0]
        after = _copy(found)
        for edit in edits:
            _edit(after, edit)
        self.stage.tables[version, name] = before, after


class _NoLock(XtablesLock):
    """Nothing is written, so nobody has to be kept away."""

    def is_free(self) -> bool:
        return True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        yield


class _Ipset(Ipset):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def index(self, name: str) -> int:
        if self._stage.sets.get(name, ((), ()))[0] is None:
            return _NO_INDEX + len(self._stage.sets)
        return super().index(name)

    def create(self, name: str, version: int) -> None:
        before, _ = self._staged(name)
        self._stage.sets[name] = before, set()

    def destroy(self, name: str) -> None:
        before, _ = self._staged(name)
        self._stage.sets[name] = before, None

    def add(self, name: str, members: Iterable[bytes]) -> None:
        before, after = self._staged(name)
        self._stage.sets[name] = before, {*(after or ()), *members}

    def delete(self, name: str, members: Iterable[bytes]) -> None:
        """A member that somebody gave an option has a byte more than what takes it out."""
        before, after = self._staged(name)
        gone = set(members)
        kept = {m for m in after or () if m not in gone and m[: 17 if len(m) > 16 else 5] not in gone}
        self._stage.sets[name] = before, kept

    def _staged(self, name: str) -> tuple[set[bytes] | None, set[bytes] | None]:
        if name not in self._stage.sets:
            try:
                found = self.members(name)
            except IpsetError:
                found = None
            self._stage.sets[name] = found, found
        return self._stage.sets[name]


class _Nft(NftSocket):
    """Transactions end in the picture; the kernel gets none, not even one that it would throw away."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def _transact(self, requests: Sequence[Request], commit: bool) -> Refused | None:
        stage = self._stage
        if stage.nft_before is None or stage.nft_after is None:
            stage.nft_before, stage.nft_after = Picture.read(self), Picture.read(self)
        if commit:
            for request in requests:
                stage.nft_after.take(request)
        return None


def _lines(of: str, have: Iterable[Shown], want: Iterable[Shown]) -> Iterator[Line]:
    for sign, text in compared(have, want):
        yield Line(sign, f"{of} {text}")


def _or_anew(where: str, lines: Iterable[Line]) -> list[Line]:
    """``lines``; where there are none, what is the same is still written anew."""
    return list(lines) or [Line("~", f"{where}: written anew, in another order or with other properties")]


def _table_lines(where: str, before: Table, after: Table) -> Iterator[Line]:
    for chain in sorted(before.ours.keys() ^ after.ours.keys()):
        yield Line("+" if chain in after.ours else "-", f"{where} {chain}")
    for chain in sorted({*before.hooks, *before.ours, *after.hooks, *after.ours}):
        have, want = (map(_entry, _rules(table, chain)) for table in (before, after))
        yield from _lines(f"{where} {chain}", have, want)


def _copy(table: Table) -> Table:
    return Table(
        {name: list(rules) for name, rules in table.hooks.items()},
        {name: list(rules) for name, rules in table.ours.items()},
    )


def _rules(table: Table, chain: str) -> list[Entry]:
    return table.hooks.get(chain) or table.ours.get(chain, [])


def _edit(table: Table, edit: Edit) -> None:
    if isinstance(edit, Create):
        table.ours[edit.chain] = []
    elif isinstance(edit, Drop):
        table.ours.pop(edit.chain, None)
    else:
        chains = table.ours if edit.chain in table.ours else table.hooks
        rules = chains.setdefault(edit.chain, [])
        if isinstance(edit, Insert):
            rules.insert(edit.position, edit.entry)
        elif isinstance(edit, Delete):
            del rules[edit.position]
        elif isinstance(edit, Flush):
            rules.clear()


def _member(member: bytes) -> Shown:
    """An address, the length of its prefix, and a byte more for one that somebody gave an option."""
    size = 16 if len(member) > 16 else 4
    option = " (with an option)" if len(member) > size + 1 else ""
    return Shown(f"{ip_text(member[:size])}/{member[size]}{option}")


def _entry(entry: Entry) -> Shown:
    """As much of a rule as tells a person which one it is: its comment, or by default where it leads."""
    return Shown(f'"{entry.comment}"' if entry.comment else f"-j {entry.target}", entry)
