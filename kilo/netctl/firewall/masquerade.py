"""What the firewall does to a new flow's source, and what of that has changed: for flows that are not new.

Pure. The kernel decides about translation once for each flow, so flows that began before a change
keep what was decided then. Called by kilo.netctl.firewall.reconciler and kilo.netctl.conntrack.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kilo.model.plan import FirewallSet
from kilo.netctl.firewall.backend import Desired
from kilo.netctl.firewall.ipset import name_of

KINDS: tuple[FirewallSet, ...] = ("masquerade_from", "masquerade_to", "no_masquerade_to")
_SETS: dict[str, tuple[FirewallSet, ...]] = {
    name_of((kind, version)): (kind,) for kind in KINDS for version in (4, 6)
}
_TABLES, _OTHER_FIREWALL = ("nat-", "kilo-v"), "the "
"""How the keys of outcomes begin that are about the rules which masquerade."""


class Networks:
    """Which addresses lie in one of some networks; members as kilo.netctl.firewall.members has them."""

    def __init__(self, members: Iterable[bytes] = ()) -> None:
        self._lengths: dict[tuple[int, int], set[int]] = {}
        for member in members:
            size, bits = len(member) - 1, member[-1]
            shift = size * 8 - bits
            self._lengths.setdefault((size, shift), set()).add(int.from_bytes(member[:-1]) >> shift)

    def hold(self, address: bytes) -> bool:
        """``address`` in network order."""
        size, number = len(address), int.from_bytes(address)
        return any(number >> shift in found for (of, shift), found in self._lengths.items() if of == size)


class Masquerade:
    """What the rules that the plan asks for do to a flow's first packet."""

    def __init__(self, desired: Desired) -> None:
        self.asked = desired.policy is not None
        self._from, self._to, self._known = (
            Networks(member for version in (4, 6) for member in desired.members((kind, version)))
            for kind in KINDS
        )

    def applies(self, source: bytes, destination: bytes) -> bool:
        """Whether the source is replaced. Addresses in network order."""
        return self.is_ours(source, destination) and not self._known.hold(destination)

    def is_ours(self, source: bytes, destination: bytes) -> bool:
        """Whether the rules look at such a flow at all; else it is for others to say."""
        return self._from.hold(source) or self._to.hold(destination)


@dataclass
class Moves:
    """What has changed. ``whole``: anything may have; else the members that came or went, by set."""

    whole: bool = False
    members: dict[FirewallSet, set[bytes]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.whole or bool(self.members)

    def add(self, other: Moves) -> None:
        self.whole = self.whole or other.whole
        for kind, members in other.members.items():
            self.members.setdefault(kind, set()).update(members)


def kinds_of(key: str) -> tuple[FirewallSet, ...] | None:
    """The sets of which members may have moved with the outcome under ``key``.

    Empty if anything may have; None if it is not about masquerading. Rules stand for all sets: they
    have the members in them where there are no sets.
    """
    if key.startswith(_OTHER_FIREWALL):
        return ()
    return KINDS if key.startswith(_TABLES) else _SETS.get(key.partition("/")[0])
