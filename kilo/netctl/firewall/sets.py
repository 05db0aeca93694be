"""The sets that the kernel has of ours: as read last, and changed since.

Called by kilo.netctl.firewall.legacy.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from kilo.log import Logger
from kilo.netctl.firewall import xtables
from kilo.netctl.firewall.ipset import Ipset, IpsetMissing
from kilo.netctl.firewall.layout import SET_REVISION

NewIpset = Callable[[], Ipset]


class Sets:
    """Members are as kilo.netctl.firewall.ipset has them. Changes raise TemporaryError."""

    def __init__(self, log: Logger, new_ipset: NewIpset) -> None:
        self._log = log
        self._new_ipset = new_ipset
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
                if self._usable is None:
                    _probe(ipset)
                    self._usable = True
                found = {name: ipset.members(name) for name in ipset.names()}
        except IpsetMissing as e:
            self._usable = False
            self._log.warn("no ipset in the kernel: one rule for each address instead", reason=str(e))
            return
        self._members = {name: members for name, members in found.items() if members is not None}
        self._strange = found.keys() - self._members.keys()
        self._indexes = {name: xtables.set_index(name) for name in self._members}

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
                self._indexes[name] = xtables.set_index(name)
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


def _probe(ipset: Ipset) -> None:
    """Raises IpsetMissing if there are no sets, or no rules that look into them."""
    ipset.check()
    if not xtables.has_match(4, "set", SET_REVISION):
        raise IpsetMissing("no rule can look into a set (module xt_set)")
