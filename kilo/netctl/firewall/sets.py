"""The sets that the kernel has of ours: as read last, and changed since.

Called by the backends, each of which has sets of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set

from kilo.log import Logger
from kilo.netctl.firewall.ipset import OF_LEGACY, Ipset, IpsetMissing

NewIpset = Callable[[], Ipset]


class Sets:
    """Members are as kilo.netctl.firewall.ipset has them. Changes raise TemporaryError.

    ``pattern``: which sets. ``has_match``: whether a rule can look into one; None where no rule will,
    and sets are to be removed alone.
    """

    def __init__(
        self,
        log: Logger,
        new_ipset: NewIpset,
        pattern: re.Pattern[str] = OF_LEGACY,
        has_match: Callable[[], bool] | None = None,
    ) -> None:
        self._log = log
        self._new_ipset = new_ipset
        self._pattern = pattern
        self._has_match = has_match
        self._usable: bool | None = None
        self._members: dict[str, set[bytes]] = {}
        self._strange: set[str] = set()
        self._indexes: dict[str, int] = {}

    @property
    def usable(self) -> bool:
        """Whether the kernel has sets, and rules that look into them. Asked once, at the first load."""
        return bool(self._usable)

    def names(self) -> set[str]:
        return self._members.keys() | self._strange

    def load(self) -> None:
        """Read all sets of ours. Raises TemporaryError."""
        if self._usable is False:
            return
        try:
            with self._new_ipset() as ipset:
                if self._usable is None and self._has_match is not None:
                    _probe(ipset, self._has_match)
                found = {name: ipset.members(name) for name in ipset.names(self._pattern)}
                indexes = {name: ipset.index(name) for name, members in found.items() if members is not None}
                self._usable = True
        except IpsetMissing as e:
            self._usable = False
            if self._has_match is not None:
                self._log.warn("no ipset in the kernel: one rule for each address instead", reason=str(e))
            return
        self._members = {name: members for name, members in found.items() if members is not None}
        self._strange = found.keys() - self._members.keys()
        self._indexes = indexes

    def holds(self, name: str, wanted: Set[bytes]) -> bool:
        """Whether the set exists and has all of ``wanted``."""
        return name in self._members and wanted <= self._members[name]

    def has_surplus(self, name: str, wanted: Set[bytes]) -> bool:
        return name in self._members and not self._members[name] <= wanted

    def index(self, name: str) -> int:
        """The number by which rules refer to a set that ``holds``."""
        return self._indexes[name]

    def fill(self, name: str, version: int, wanted: Set[bytes]) -> None:
        """Make the set if need be, and add what it lacks."""
        with self._new_ipset() as ipset:
            if name in self._strange:
                ipset.destroy(name)
                self._strange.discard(name)
            if name not in self._members:
                ipset.create(name, version)
                self._indexes[name] = ipset.index(name)
                self._members[name] = set()
            missing = wanted - self._members[name]
            ipset.add(name, missing)
            self._members[name] |= missing

    def thin_out(self, name: str, wanted: Set[bytes]) -> None:
        """Take out what is not wanted."""
        surplus = self._members[name] - wanted
        plain = {_without_flags(member) for member in surplus} - wanted
        with self._new_ipset() as ipset:
            ipset.delete(name, plain)
        self._members[name] -= surplus

    def destroy(self, name: str) -> None:
        """Remove a set that no rule refers to."""
        with self._new_ipset() as ipset:
            ipset.destroy(name)
        self._members.pop(name, None)
        self._strange.discard(name)
        self._indexes.pop(name, None)


def _without_flags(member: bytes) -> bytes:
    """A member without the byte for odd flags. Adding it anew has taken the flags away already."""
    return member[: 17 if len(member) > 16 else 5]


def _probe(ipset: Ipset, has_match: Callable[[], bool]) -> None:
    """Raises IpsetMissing if there are no sets, or no rules that look into them."""
    ipset.check()
    if not has_match():
        raise IpsetMissing("no rule can look into a set (module xt_set)")
