"""The ipsets into which our rules in the chains of iptables-nft look.

They are there only where such a chain is, and wants rules of ours. Called by
kilo.netctl.firewall.nft.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

from kilo.log import Logger
from kilo.model.plan import FirewallSet
from kilo.netctl.firewall.attempts import Attempts
from kilo.netctl.firewall.backend import Desired, SetId
from kilo.netctl.firewall.ipset import OF_NFT, REFERRED, Ipset, IpsetError, in_kernel, name_of
from kilo.netctl.firewall.nft_layout import Selector, by_address, by_ipset
from kilo.netctl.firewall.sets import Sets

_PATIENCE, _PAUSE = 0.2, 0.002
"""Seconds. The worker's loop stands still meanwhile."""


class HostSets:
    """``has_match``: whether rules of nf_tables can look into an ipset; None where none will."""

    def __init__(
        self,
        log: Logger,
        new_ipset: Callable[[], Ipset],
        has_match: Callable[[], bool] | None,
        attempts: Attempts,
    ) -> None:
        self._sets = Sets(log, new_ipset, OF_NFT, has_match)
        self._attempts = attempts

    @property
    def usable(self) -> bool:
        """Whether there are ipsets; else there is a rule for each address."""
        return self._sets.usable

    @property
    def any(self) -> bool:
        return bool(self._sets.names())

    def load(self) -> None:
        """Read what there is. Raises TemporaryError."""
        self._sets.load()

    def fill(self, set_ids: Iterable[SetId], desired: Desired) -> bool:
        """Have all members of these sets in the kernel; whether that worked."""
        ready = True
        for set_id in set_ids if self.usable else ():
            name, wanted = _name(set_id), in_kernel(desired.members(set_id))
            self._attempts.make(
                name,
                not self._sets.holds(name, wanted),
                desired.moved.isdisjoint((set_id, "policy")),
                partial(self._sets.fill, name, set_id[1], wanted),
            )
            ready = ready and self._sets.holds(name, wanted)
        return ready

    def thin_out(self, set_ids: Iterable[SetId], desired: Desired) -> None:
        """Remove what these sets have too much of, and all other sets."""
        if not self.usable:
            return
        wanted_names = set()
        for set_id in set_ids:
            name, wanted = _name(set_id), in_kernel(desired.members(set_id))
            wanted_names.add(name)
            self._attempts.make(
                f"{name}/surplus",
                self._sets.has_surplus(name, wanted),
                desired.moved.isdisjoint((set_id, "policy")),
                partial(self._sets.thin_out, name, wanted),
            )
        for name in sorted(self._sets.names() - wanted_names):
            repair = "policy" not in desired.moved
            self._attempts.make(f"{name}/surplus", True, repair, partial(self._destroy, name))

    def _destroy(self, name: str) -> None:
        """The kernel lets go of a set some milliseconds after the rule that looked into it is gone."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self._sets.destroy(name)
            except IpsetError as e:
                if e.code != REFERRED or time.monotonic() >= until:
                    raise
                time.sleep(_PAUSE)
            else:
                return

    def selector(self, version: int, kinds: Iterable[FirewallSet], desired: Desired) -> Selector:
        """What rules look at, once these sets are filled."""
        if self.usable:
            return by_ipset({kind: self._sets.index(_name((kind, version))) for kind in kinds})
        return by_address(version, {kind: desired.members((kind, version)) for kind in kinds})


def _name(set_id: SetId) -> str:
    return name_of(set_id, "nft-")
