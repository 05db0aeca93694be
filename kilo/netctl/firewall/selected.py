"""The firewall that the host uses, of the two that there are, and the end of what the other left.

The choice is made when the kernel is read first; it is made again at every reading until the host
has shown which one it uses. What the other left, an earlier run of ours or the Go agent, is removed
once ours stands, so that what must not be masqueraded is not at any moment. Called by
kilo.netctl.firewall.reconciler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from kilo.errors import TemporaryError
from kilo.log import Logger
from kilo.netctl.firewall.access import KERNEL, Access
from kilo.netctl.firewall.attempts import Attempts
from kilo.netctl.firewall.backend import Backend, Desired, Readers
from kilo.netctl.firewall.choice import Choice, Kind, decide
from kilo.netctl.firewall.ipset import Ipset
from kilo.netctl.firewall.legacy import LegacyBackend
from kilo.netctl.firewall.nft import NftBackend
from kilo.netctl.reconcile import Outcome

_MAKERS: dict[Kind, type[LegacyBackend] | type[NftBackend]] = {
    "legacy": LegacyBackend,
    "nftables": NftBackend,
}


class _Chosen(NamedTuple):
    choice: Choice
    backend: Backend


class SelectedBackend:
    """See kilo.netctl.firewall.backend.Backend. ``flag``: the value of --firewall."""

    def __init__(
        self,
        flag: str,
        log: Logger,
        new_ipset: Callable[[], Ipset] = Ipset,
        clock: Callable[[], float] = time.monotonic,
        access: Access = KERNEL,
    ) -> None:
        self._flag = flag
        self._log = log
        self._new_ipset = new_ipset
        self._clock = clock
        self._access = access
        self._attempts = Attempts(clock)
        self._chosen: _Chosen | None = None
        self._other_is_gone = False
        self._over: set[str] = set()
        """Keys of the errors of a backend that was replaced."""
        self._readers: Readers | None = None
        self._on_drift: Callable[[], None] = lambda: None

    @property
    def told(self) -> str:
        return f"{self._chosen.backend.told}: {self._chosen.choice.reason}" if self._chosen else ""

    def watch(self, readers: Readers, on_drift: Callable[[], None]) -> None:
        self._readers, self._on_drift = readers, on_drift
        if self._chosen is not None:
            self._chosen.backend.watch(readers, on_drift)

    def close(self) -> None:
        if self._chosen is not None:
            self._chosen.backend.close()

    def settled(self) -> bool:
        return self._other_is_gone and self._chosen is not None and self._chosen.backend.settled()

    def failures(self) -> set[str]:
        return self._attempts.failures.union(self._chosen.backend.failures() if self._chosen else ())

    def load(self) -> None:
        self._select().backend.load()

    def apply(self, desired: Desired) -> list[Outcome]:
        outcomes = [Outcome(key) for key in sorted(self._over)]
        self._over.clear()
        return outcomes + (self._chosen.backend.apply(desired) if self._chosen else [])

    def prune(self, desired: Desired) -> list[Outcome]:
        if self._chosen is None:
            return []
        outcomes = self._chosen.backend.prune(desired)
        if not self._other_is_gone and self._chosen.backend.settled():
            outcomes += self._remove_other(self._chosen.choice.kind)
        return outcomes

    def clean_up(self, patience: float = 0.0) -> list[Outcome]:
        try:
            chosen = self._select()
        except TemporaryError as e:
            return [Outcome("firewall", f"firewall: {e}")]
        self._attempts.reset()
        return chosen.backend.clean_up(patience) + self._remove_other(chosen.choice.kind, patience)

    def _select(self) -> _Chosen:
        """Make the choice, if it is not firm, and the backend, if it is another. Raises TemporaryError."""
        before = self._chosen
        if before is not None and before.choice.firm:
            return before
        choice = decide(self._flag, self._access.look)
        if before is not None and before.choice.kind == choice.kind:
            self._chosen = before._replace(choice=choice)
            return self._chosen
        backend = self._make(choice.kind)
        if self._readers is not None:
            backend.watch(self._readers, self._on_drift)
        self._over |= self.failures()
        self._attempts = Attempts(self._clock)
        self.close()
        self._chosen, self._other_is_gone = _Chosen(choice, backend), False
        self._log.info("firewall chosen", firewall=choice.kind, reason=choice.reason)
        return self._chosen

    def _make(self, kind: Kind, remover: bool = False) -> Backend:
        return _MAKERS[kind](self._log, self._new_ipset, self._clock, remover, self._access)

    def _remove_other(self, chosen: Kind, patience: float = 0.0) -> list[Outcome]:
        """Remove what the other firewall left; where that does not work, it is tried again."""
        other: Kind = "legacy" if chosen == "nftables" else "nftables"
        key = f"the {other} firewall"
        if not self._attempts.due(key):
            return []
        remover = self._make(other, remover=True)
        outcomes = remover.clean_up(patience)
        remover.close()
        errors = [outcome.error for outcome in outcomes if outcome.error]
        if errors:
            self._attempts.failed(key, f"cannot be removed: {'; '.join(errors)}", repair=False)
        else:
            self._other_is_gone = True
            self._attempts.unneeded(key)
        return [outcome for outcome in outcomes if not outcome.error] + self._attempts.take()
