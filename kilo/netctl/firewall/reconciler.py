"""The firewall as the worker drives it: the plan's items in, outcomes out.

Keeps what the plan wants (``Desired``) and lets a ``Backend`` make it so. A pass in which neither
the plan nor the kernel has moved costs nothing. Called by kilo.netctl.worker.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from typing import get_args

import msgspec

from kilo.config import Config
from kilo.log import Logger
from kilo.model.plan import Firewall as Policy
from kilo.model.plan import FirewallSet, PlanItem, SetEntry, Tunnel
from kilo.netctl.facts import CNI_BRIDGE
from kilo.netctl.failures import TUNNEL
from kilo.netctl.firewall.backend import Backend, Desired, Readers
from kilo.netctl.firewall.forwarding import Pods, describe
from kilo.netctl.firewall.forwarding_look import ForwardingLook
from kilo.netctl.firewall.masquerade import KINDS, Masquerade, Moves, kinds_of
from kilo.netctl.firewall.routed import RoutedEntries
from kilo.netctl.firewall.selected import SelectedBackend
from kilo.netctl.reconcile import Outcome
from kilo.netctl.tunnel import NAMES

CLEAN_UP_PATIENCE = 3.0
"""Seconds: netctl has 9 for its clean-up, and gets a second chance if it fails at it."""
_KINDS: dict[str, FirewallSet] = {kind: kind for kind in get_args(FirewallSet)}


class Firewall:
    """See kilo.netctl.reconcile.Reconciler. A plan without an item "firewall" wants no rules."""

    name = "firewall"
    more = False

    def __init__(
        self,
        config: Config,
        log: Logger,
        backend: Backend | None = None,
        forwarding: ForwardingLook | None = None,
    ) -> None:
        self._interface = config.interface
        self._desired = Desired((config.interface,))
        self._planned = False
        self._applied = False
        self._policy: Policy | None = None
        """What the plan asks for."""
        self._guard_kept = False
        self._released = False
        """The guard was given up since ``apply``, which has yet to take its rules away."""
        self._late = False
        """Members came or went with their routes since ``apply``."""
        self._routed = RoutedEntries(self._add_member, self._drop_member)
        self._moving: dict[FirewallSet, set[bytes]] = {}
        """What the plan changed about the sets for masquerading and the kernel may not have yet."""
        self._moves = Moves()
        self._backend = backend or SelectedBackend(config.firewall, log)
        self._forwarding = forwarding or ForwardingLook()
        self._unseen_forwarding = True
        """The kernel was read, or the pod CIDR changed, since the last look at FORWARD."""
        self._dropped = ""

    @property
    def told(self) -> str:
        """Which firewall it is, and why, for a person; "" until the kernel has been read."""
        return self._backend.told

    def watch(self, readers: Readers, on_drift: Callable[[], None]) -> None:
        """Call ``on_drift`` when somebody else changes what is ours, as far as the kernel tells.

        Then ``load`` has to be called, and a pass made. Raises TemporaryError.
        """
        self._backend.watch(readers, on_drift)

    def close(self) -> None:
        """Hear no more; the kernel keeps all that it has."""
        self._backend.close()
        self._forwarding.close()

    def leave_out(self, absent: Set[str]) -> None:
        """The routes to these networks cannot stand now, so what they would carry is masqueraded as before.

        To be called before ``apply`` and before ``prune``: what has become of the routes in between goes
        with the latter.
        """
        if self._routed.leave_out(absent):
            self._late = True

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        self._planned, self._applied = True, False
        desired = self._desired
        for key in removals:
            kind, _, rest = key.partition("/")
            if kind == "entry":
                name, _, network = rest.partition("/")
                if name in _KINDS and not self._routed.forget(key):
                    self._drop_member(_KINDS[name], network)
            elif kind == "firewall":
                self._policy = None
            elif kind == TUNNEL:
                desired.use((self._interface,))
        for item in upserts.values():
            if isinstance(item, SetEntry):
                if not self._routed.keep(item):
                    self._add_member(item.set, item.network)
            elif isinstance(item, Policy):
                self._policy = item
                self._unseen_forwarding = True
            elif isinstance(item, Tunnel):
                desired.use((self._interface, *NAMES["" if item.kind == "ipip" else item.kind]))
        self._routed.route(upserts.values(), removals)
        self._want()

    def keep_guard(self, keep: bool) -> None:
        """Whether IPIP is to be guarded though the plan does not ask for it: what takes it is still up.

        To be called before ``apply`` and before ``prune``: the guard that is given up between the two
        goes with the latter.
        """
        if keep != self._guard_kept:
            self._guard_kept = keep
            self._want()
            self._released = not keep

    def _want(self) -> None:
        policy = self._policy
        if policy is not None and self._guard_kept:
            policy = msgspec.structs.replace(policy, ipip_guard=True)
        self._desired.want(policy)

    def load(self) -> None:
        self._backend.load()
        self._unseen_forwarding = True

    def dropped_pods(self, devices_of: Callable[[str], Collection[str]]) -> str:
        """Which of the host's FORWARD chains drop its pods, and what to do, for a person; "" for none.

        ``devices_of`` gives the interfaces with an address in a network. To be called after a pass, when
        our own rules are there: the chains are read if the kernel was read since. Raises TemporaryError.
        """
        policy = self._policy
        if policy is None or not policy.pods:
            return ""
        if self._unseen_forwarding:
            devices = frozenset((CNI_BRIDGE, *devices_of(policy.pods)))
            blocked = self._forwarding.blocked(Pods(policy.pods, devices, frozenset((self._interface,))))
            flag_for = "" if policy.forward else self.told.partition(":")[0].partition(",")[0]
            self._dropped = describe(blocked, policy.pods, flag_for)
            self._unseen_forwarding = False
        return self._dropped

    def apply(self) -> list[Outcome]:
        if self._is_done():
            return []
        self._applied, self._released, self._late = True, False, False
        return self._noted(self._backend.apply(self._desired))

    def prune(self) -> list[Outcome]:
        if self._is_done():
            return []
        outcomes = self.apply() if self._released or self._late else []
        outcomes += self._noted(self._backend.prune(self._desired))
        if self._applied and self._backend.settled():
            self._desired.matched()
        return outcomes

    def _add_member(self, kind: FirewallSet, network: str) -> None:
        self._note_member(kind, self._desired.add(kind, network))

    def _drop_member(self, kind: FirewallSet, network: str) -> None:
        self._note_member(kind, self._desired.remove(kind, network))

    def _note_member(self, kind: FirewallSet, member: bytes) -> None:
        if member and kind in KINDS:
            self._moving.setdefault(kind, set()).add(member)

    def _noted(self, outcomes: list[Outcome]) -> list[Outcome]:
        """``outcomes``, kept in mind as far as they are about masquerading."""
        for outcome in outcomes:
            kinds = kinds_of(outcome.key)
            if kinds is not None and not outcome.error:
                if outcome.repair or not kinds or "policy" in self._desired.moved:
                    self._moves.whole = True
                else:
                    self._moves.add(Moves(members={k: self._moving[k] for k in kinds if k in self._moving}))
        return outcomes

    @property
    def masquerade(self) -> Masquerade:
        """What is to be done to new flows."""
        return Masquerade(self._desired)

    def take_moves(self) -> Moves:
        """What the kernel masquerades otherwise since the last call. To be called between passes."""
        moves, self._moves = self._moves, Moves()
        if self._applied and self._backend.settled():
            self._moving.clear()
        return moves

    def _is_done(self) -> bool:
        """Whether nothing has moved; before the first plan what an earlier run left must stay."""
        return not self._planned or (self._backend.settled() and not self._desired.moved)

    def clean_up(self) -> list[Outcome]:
        return self._backend.clean_up(CLEAN_UP_PATIENCE)
