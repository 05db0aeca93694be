"""What the firewall shall be, as values, and what has to be able to make it so.

``Desired`` is the meaning of the plan: which constant rules there are, and the members of each set.
A ``Backend`` is one way of having the kernel do that: ``kilo.netctl.firewall.legacy`` by the xtables
and ipset, ``kilo.netctl.firewall.nft`` by nf_tables. Pure: no socket is opened here.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Protocol

from kilo.model.net import bounds, parse_interface
from kilo.model.plan import Firewall, FirewallSet
from kilo.netctl.firewall.members import Interval, Members
from kilo.netctl.reconcile import Outcome

SetId = tuple[FirewallSet, int]
"""A set of the plan and the IP version, 4 or 6, of those of its members that are meant."""

FILL_ORDER: tuple[FirewallSet, ...] = (
    "no_masquerade_to",
    "ipip_accept_from",
    "forward_accept_from",
    "forward_accept_to",
    "masquerade_to",
    "masquerade_from",
)
"""Exceptions before what they are exceptions from. Sets are filled in this order, emptied in the other."""


def member_of(network: str) -> tuple[int, bytes]:
    """IP version, and the address in network order followed by the length of the prefix in one byte.

    Raises ProtocolError if ``network`` is not in CIDR notation. Host bits are cleared.
    """
    version, first, _ = bounds(network)
    return version, first.to_bytes(4 if version == 4 else 16) + bytes((parse_interface(network)[1],))


class Desired:
    """The rules and sets that the plan asks for; ``policy`` None asks for none at all.

    ``devices``: the names of the interfaces whose traffic is to be told what fits through them.
    ``moved`` holds what the plan changed since the kernel last matched: a set, or "policy".
    """

    def __init__(self, devices: tuple[str, ...] = ()) -> None:
        self.policy: Firewall | None = None
        self.devices = devices
        self.moved: set[SetId | str] = {"policy"}
        self._known: set[tuple[str, str]] = set()
        self._sets: dict[SetId, Members] = {(k, v): Members() for k in FILL_ORDER for v in (4, 6)}

    def members(self, set_id: SetId) -> Set[bytes]:
        return self._sets[set_id].networks()

    def outer(self, set_id: SetId) -> Set[Interval]:
        """The members that lie in no other."""
        return self._sets[set_id].outer()

    def outer_moved(self, set_id: SetId) -> Set[Interval]:
        """What the plan changed about ``outer`` since the kernel last matched."""
        return self._sets[set_id].outer_moved

    def matched(self) -> None:
        """The kernel is as is asked for."""
        for moved in self.moved:
            if not isinstance(moved, str):
                self._sets[moved].outer_moved.clear()
        self.moved.clear()

    def want(self, policy: Firewall | None) -> None:
        if policy != self.policy:
            self.policy = policy
            self.moved.add("policy")

    def use(self, devices: tuple[str, ...]) -> None:
        if devices != self.devices:
            self.devices = devices
            self.moved.add("policy")

    def add(self, kind: FirewallSet, network: str) -> bytes:
        """The member that came, b"" if it was there: those that differ in host bits alone are one.

        Raises ProtocolError.
        """
        if (kind, network) in self._known:
            return b""
        version, member = member_of(network)
        self._known.add((kind, network))
        if not self._sets[kind, version].add(member):
            return b""
        self.moved.add((kind, version))
        return member

    def remove(self, kind: FirewallSet, network: str) -> bytes:
        """The member that went, or b"". What was not added is ignored."""
        if (kind, network) not in self._known:
            return b""
        version, member = member_of(network)
        self._known.remove((kind, network))
        if not self._sets[kind, version].remove(member):
            return b""
        self.moved.add((kind, version))
        return member

    def kinds(self) -> tuple[FirewallSet, ...]:
        """The sets that the policy's rules look into, in the order in which they are filled."""
        return tuple(kind for kind in FILL_ORDER if self._is_used(kind))

    def _is_used(self, kind: FirewallSet) -> bool:
        if self.policy is None:
            return False
        if kind == "ipip_accept_from":
            return self.policy.ipip_guard
        if kind in ("forward_accept_from", "forward_accept_to"):
            return self.policy.forward
        return True


class Readers(Protocol):
    """The part of the worker's loop that a backend needs: kilo.bus.Loop has it."""

    def add_reader(self, source: int, callback: Callable[[], None]) -> None: ...

    def remove_reader(self, source: int) -> None: ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> object: ...


class Backend(Protocol):
    """Makes the kernel's firewall match a Desired. Called by kilo.netctl.firewall.reconciler alone.

    Nothing raises but ``load`` and ``watch``; what did not work is told in outcomes, each under the
    key of the object that it is about, and an outcome without error for a key takes an earlier error
    back. ``told``: what this is, for a person.
    """

    @property
    def told(self) -> str: ...

    def watch(self, readers: Readers, on_drift: Callable[[], None]) -> None:
        """Call ``on_drift`` when somebody else changes what is ours: it is time to ``load``.

        Where the kernel sends no events, it is never called. Raises TemporaryError.
        """

    def close(self) -> None:
        """Close what is open. The kernel keeps all that it has."""

    def load(self) -> None:
        """Read what there is of ours. Changes nothing. Raises TemporaryError."""

    def apply(self, desired: Desired) -> list[Outcome]:
        """Add members that are missing, then put the rules right."""

    def prune(self, desired: Desired) -> list[Outcome]:
        """Remove members and sets that are no longer wanted."""

    def clean_up(self, patience: float = 0.0) -> list[Outcome]:
        """Read, then remove all that is ours.

        ``patience``: seconds that may pass in waiting for others, as for a lock.
        """

    def settled(self) -> bool:
        """Whether the kernel matches as far as is known: there is nothing to do if the plan stands."""

    def failures(self) -> set[str]:
        """The keys of the errors that stand: whoever takes this one's place takes them back."""
