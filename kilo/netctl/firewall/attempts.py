"""One change to one object: whether it is time to try, and what became of it.

Called by the backends, which either ``make`` a change, or ask whether it is ``due`` and tell what
became of it.
"""

from __future__ import annotations

from collections.abc import Callable

from kilo.errors import KiloError, TemporaryError
from kilo.netctl.reconcile import Backoff, Outcome

_MORE_TRIES = 2


class Busy(TemporaryError):
    """Somebody else has to finish something first: it is no failure, and no longer wait is called for."""


class Attempts:
    """Collects the outcomes of a pass, from ``begin`` to ``end``. An object that failed has to wait."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._backoff: Backoff[str] = Backoff()
        self._failing: set[str] = set()
        self._waiting: set[str] = set()
        self._seen: set[str] = set()
        self._outcomes: list[Outcome] = []

    @property
    def failing(self) -> bool:
        return bool(self._failing)

    @property
    def failures(self) -> set[str]:
        """What failed when it was tried last."""
        return set(self._failing)

    @property
    def waiting(self) -> bool:
        """Whether something waits for somebody else."""
        return bool(self._waiting)

    def begin(self) -> None:
        self._seen.clear()

    def hold(self, key: str) -> None:
        """``key`` has to wait for something else; nothing is known of it."""
        self._seen.add(key)

    def make(self, key: str, needed: bool, repair: bool, change: Callable[[], None]) -> None:
        """Call ``change`` if it is ``needed`` and due; it raises KiloError if it does not work."""
        if not needed:
            self.unneeded(key)
        elif self.due(key):
            try:
                change()
            except Busy as e:
                self._waiting.add(key)
                self._failing.add(key)
                self._outcomes.append(Outcome(key, _told(key, str(e)), repair, waits=True))
            except KiloError as e:
                self.failed(key, str(e), repair)
            else:
                self.worked(key, repair)

    def due(self, key: str) -> bool:
        """Whether ``key``, which has to be changed, may be tried."""
        self._seen.add(key)
        return self._backoff.due(key, self._clock())

    def unneeded(self, key: str) -> None:
        """``key`` is as it should be."""
        self._seen.add(key)
        self._worked(key)

    def worked(self, key: str, repair: bool) -> None:
        """``key`` was changed."""
        self._backoff.worked(key)
        self._failing.discard(key)
        self._waiting.discard(key)
        self._outcomes.append(Outcome(key, "", repair))

    def failed(self, key: str, reason: str, repair: bool) -> None:
        """``key`` could not be changed."""
        self._backoff.failed(key, self._clock())
        self._failing.add(key)
        self._waiting.discard(key)
        self._outcomes.append(Outcome(key, _told(key, reason), repair))

    def fails(self, key: str) -> bool:
        """Whether ``key`` failed when it was tried last."""
        return key in self._failing

    def take(self) -> list[Outcome]:
        """The outcomes since the last call."""
        taken, self._outcomes = self._outcomes, []
        return taken

    def end(self) -> None:
        """What failed once and was not met in this pass is no longer wanted: its error is taken back."""
        for key in self._failing - self._seen:
            self._worked(key)

    def reset(self) -> None:
        """Everything is due at once."""
        self._backoff.reset()

    def _worked(self, key: str) -> None:
        if key in self._failing:
            self._failing.discard(key)
            self._waiting.discard(key)
            self._backoff.worked(key)
            self._outcomes.append(Outcome(key))


def persistently(change: Callable[[], list[Outcome]]) -> list[Outcome]:
    """The outcomes of ``change``, which is called again where something did not work.

    For the end, after which nobody comes back: another program may just have changed what was read.
    """
    outcomes = change()
    for _ in range(_MORE_TRIES):
        if not any(outcome.error for outcome in outcomes):
            break
        outcomes = change()
    return outcomes


def _told(key: str, reason: str) -> str:
    """``reason``, with the name of the object before it if it does not say that itself."""
    name = key.partition("/")[0]
    return reason if reason.startswith(f"{name}: ") else f"{name}: {reason}"
