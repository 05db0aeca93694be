"""The firewall by legacy xtables and ipset.

One object at a time is compared, and changed if it differs: each set, then each table of each IP
version. Sets are filled before the rules that look into them are made, a table is one commit, and
what is no longer wanted leaves the sets last. A table is left alone while one of its sets could not
be filled, so that nothing is masqueraded, or dropped, for want of a member.
Works for the network namespace of the thread that it is called on. Called by
kilo.netctl.firewall.reconciler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from functools import partial

from kilo.errors import KiloError
from kilo.log import Logger
from kilo.model.plan import FirewallSet
from kilo.netctl.firewall import xtables
from kilo.netctl.firewall.access import KERNEL, Access
from kilo.netctl.firewall.attempts import Attempts, persistently
from kilo.netctl.firewall.backend import FILL_ORDER, Desired, Readers, SetId
from kilo.netctl.firewall.ipset import Ipset, in_kernel, name_of
from kilo.netctl.firewall.lock import WAIT
from kilo.netctl.firewall.rules import FILTER, MANGLE, NAT, TABLES, Selector, by_address, by_set, layout_of
from kilo.netctl.firewall.sets import Sets
from kilo.netctl.firewall.tables import Tables
from kilo.netctl.reconcile import Outcome

_SETS_OF: dict[str, tuple[FirewallSet, ...]] = {
    NAT: ("no_masquerade_to", "masquerade_to", "masquerade_from"),
    FILTER: ("ipip_accept_from", "forward_accept_from", "forward_accept_to"),
    MANGLE: (),
}
_MATTERS_WITH: dict[str, tuple[FirewallSet, ...]] = {
    NAT: ("masquerade_to", "masquerade_from"),
    FILTER: _SETS_OF[FILTER],
    MANGLE: FILL_ORDER,
}
"""With no member in any of these, a table's rules do nothing to the traffic of the mesh."""
KNOCK = 0.1
"""Seconds between two looks at the lock that somebody else holds."""


class LegacyBackend:
    """See kilo.netctl.firewall.backend.Backend."""

    def __init__(
        self,
        log: Logger,
        new_ipset: Callable[[], Ipset] = Ipset,
        clock: Callable[[], float] = time.monotonic,
        remover: bool = False,
        access: Access = KERNEL,
    ) -> None:
        """A ``remover`` is for ``clean_up`` alone, and does not ask what the kernel could do."""
        self._versions: tuple[int, ...] = ()
        self._attempts = Attempts(clock)
        self._sets = Sets(log, new_ipset, has_match=None if remover else access.has_set_match)
        self._tables = Tables(log, access)
        self._to_do = {"apply", "prune"}
        self._readers: Readers | None = None
        self._on_free: Callable[[], None] = lambda: None
        self._knocking = False

    @property
    def told(self) -> str:
        return "legacy" if self._sets.usable else "legacy, without ipset"

    def watch(self, readers: Readers, on_drift: Callable[[], None]) -> None:
        """A legacy table, or an ipset, tells nobody that it has changed; a lock, that it is free."""
        self._readers, self._on_free = readers, on_drift

    def close(self) -> None:
        self._readers = None

    def settled(self) -> bool:
        return not self._to_do and not self._attempts.failing

    def failures(self) -> set[str]:
        return self._attempts.failures

    def load(self) -> None:
        self._to_do = {"apply", "prune"}
        self._versions = (4, 6) if xtables.has_family(6) else (4,)
        self._sets.load()
        self._tables.load(self._versions)

    def apply(self, desired: Desired) -> list[Outcome]:
        self._tables.lock.allow(WAIT)
        outcomes = self._apply(desired)
        if self._attempts.waiting:
            self._knock_later()
        return outcomes

    def _knock_later(self) -> None:
        if self._readers is not None and not self._knocking:
            self._knocking = True
            self._readers.call_later(KNOCK, self._knock)

    def _knock(self) -> None:
        """Nobody waits in a queue for the lock: it is tried, and got as soon as it is free."""
        self._knocking = False
        if self._readers is None or not self._attempts.waiting:
            return
        if self._tables.lock.is_free():
            self._on_free()
        else:
            self._knock_later()

    def _apply(self, desired: Desired) -> list[Outcome]:
        self._attempts.begin()
        if self._sets.usable:
            for set_id in self._set_ids(desired):
                self._fill(set_id, desired)
        for version in self._versions:
            for table in TABLES:
                self._put_right(version, table, desired)
        self._to_do.discard("apply")
        return self._attempts.take()

    def prune(self, desired: Desired) -> list[Outcome]:
        if self._sets.usable:
            set_ids = self._set_ids(desired)
            for set_id in reversed(set_ids):
                self._thin_out(set_id, desired)
            for name in sorted(self._sets.names() - {name_of(set_id) for set_id in set_ids}):
                repair = "policy" not in desired.moved
                self._attempts.make(f"{name}/surplus", True, repair, partial(self._sets.destroy, name))
        self._attempts.end()
        self._to_do.discard("prune")
        return self._attempts.take()

    def clean_up(self, patience: float = 0.0) -> list[Outcome]:
        self._tables.lock.allow(max(patience, WAIT))
        return persistently(self._remove_all)

    def _remove_all(self) -> list[Outcome]:
        nothing = Desired()
        self._attempts.reset()
        try:
            self.load()
        except KiloError as e:
            return [Outcome("firewall", f"firewall: {e}")]
        return self._apply(nothing) + self.prune(nothing)

    def _set_ids(self, desired: Desired) -> list[SetId]:
        return [(kind, version) for kind in desired.kinds() for version in self._versions]

    def _is_still(self, desired: Desired, causes: Collection[SetId | str]) -> bool:
        """Whether an object that depends on ``causes`` is as it was when it matched."""
        return self.settled() and desired.moved.isdisjoint(causes)

    def _fill(self, set_id: SetId, desired: Desired) -> None:
        causes = (set_id, "policy")
        if self._is_still(desired, causes):
            return
        name, wanted = name_of(set_id), in_kernel(desired.members(set_id))
        self._attempts.make(
            name,
            not self._sets.holds(name, wanted),
            desired.moved.isdisjoint(causes),
            partial(self._sets.fill, name, set_id[1], wanted),
        )

    def _thin_out(self, set_id: SetId, desired: Desired) -> None:
        causes = (set_id, "policy")
        if self._is_still(desired, causes):
            return
        name, wanted = name_of(set_id), in_kernel(desired.members(set_id))
        self._attempts.make(
            f"{name}/surplus",
            self._sets.has_surplus(name, wanted),
            desired.moved.isdisjoint(causes),
            partial(self._sets.thin_out, name, wanted),
        )

    def _put_right(self, version: int, table: str, desired: Desired) -> None:
        key = f"{table}-v{version}"
        kinds = [kind for kind in _SETS_OF[table] if kind in desired.kinds()]
        causes: list[SetId | str] = ["policy"]
        if not self._sets.usable:
            causes += [(kind, version) for kind in kinds]
        if self._is_still(desired, causes):
            return
        if not all(self._holds((kind, version), desired) for kind in kinds):
            self._attempts.hold(key)
            return
        select = self._selector(version, kinds, desired)
        layout = layout_of(table, version, desired.policy, desired.devices, select)
        matters = version == 4 or any(desired.members((kind, version)) for kind in _MATTERS_WITH[table])
        self._attempts.make(
            key,
            self._tables.differs((version, table), layout, matters),
            desired.moved.isdisjoint(causes),
            partial(self._tables.put_right, (version, table), layout, matters),
        )

    def _holds(self, set_id: SetId, desired: Desired) -> bool:
        """Whether rules may look into a set: it has all its members. True where there are no sets."""
        wanted = in_kernel(desired.members(set_id))
        return not self._sets.usable or self._sets.holds(name_of(set_id), wanted)

    def _selector(self, version: int, kinds: Iterable[FirewallSet], desired: Desired) -> Selector:
        if self._sets.usable:
            return by_set(version, {kind: self._sets.index(name_of((kind, version))) for kind in kinds})
        return by_address(version, {kind: desired.members((kind, version)) for kind in kinds})
