"""Changes to one device: each has a name, is tried again with backoff, and is not fought over.

Used by the reconcilers of devices, which have a few things to set and none to list.
"""

from __future__ import annotations

from collections.abc import Callable

from kilo.errors import TemporaryError
from kilo.netctl.fights import Fights
from kilo.netctl.reconcile import Backoff, Outcome


class Waits(TemporaryError):
    """Nothing was tried: something else must come first."""


class NotYet(Waits):
    """It is tried again later. What was said of it when it failed is truer than this."""


class Steps:
    """``subject``: the device, for a person."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._backoff: Backoff[str] = Backoff()
        self._failing: set[str] = set()

    def take(
        self, key: str, change: Callable[[], None] | None, now: float, fights: Fights | None = None
    ) -> list[Outcome]:
        """Make ``change`` if there is one and it may be tried; what became of it.

        ``fights`` is given where it is a repair. ``change`` raises TemporaryError.
        """
        if change is None:
            return self._settled(key)
        if (fights and not fights.may_repair(key, now)) or not self._backoff.due(key, now):
            return []
        try:
            change()
        except TemporaryError as e:
            self._backoff.failed(key, now)
            self._failing.add(key)
            return [Outcome(key, f"{self._subject}: {e}")]
        self.again(key)
        self._failing.discard(key)
        if fights:
            fights.repaired(key, now)
        return [Outcome(key, repair=fights is not None)]

    def again(self, *keys: str) -> None:
        """Circumstances changed: these may be tried at once."""
        for key in keys:
            self._backoff.worked(key)

    def _settled(self, key: str) -> list[Outcome]:
        """Nothing needs to be changed; if it failed before, that is over."""
        self.again(key)
        if key not in self._failing:
            return []
        self._failing.discard(key)
        return [Outcome(key)]
