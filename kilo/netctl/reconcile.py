"""The one shape of every reconciler: desired, actual, and the difference that is applied.

Pure: no clock, no socket. ``Delta`` knows what is wanted and what the kernel has and keeps the
difference as both move, so that a change costs what changed. ``Backoff`` says when an object that
failed is tried again. ``Reconciler`` is what the worker drives; ``kilo.netctl.objects`` builds one
from three kernel operations, and whoever has other needs (the firewall) implements it alone.

The order of a pass, which the worker keeps (rule 2): ``apply`` of every reconciler, devices first
and routes last, then ``prune`` of every one in the opposite order. So new stands before old goes,
peers stand before the routes that need them, and routes go before their peers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from kilo.model.plan import PlanItem

K = TypeVar("K")
V = TypeVar("V")


class Removed(NamedTuple):
    """An object that another program made and the plan does not have. ``what``: as ip(8) writes it."""

    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object that had to be changed.

    ``key`` is stable: errors are reported and mended under it. ``error`` is "" where it worked,
    else ``name: reason``, for a person. ``waits``: it is no failure, but something else must come
    first. ``repair``: the kernel had drifted, the plan had not moved. ``deliberate``: it is left
    undone on purpose, because of what others do, and the plan counts as applied without it.
    ``removed``: the repair was to remove this.
    """

    key: str
    error: str = ""
    repair: bool = False
    waits: bool = False
    deliberate: bool = False
    removed: Removed | None = None


class Reconciler(Protocol):
    """Makes one kind of kernel object match the plan. Everything runs on the worker's loop.

    ``name`` is for the log. ``more`` says that the last ``apply`` or ``prune`` stopped early so as
    not to hold up the loop: the worker calls it again in the loop's next round.
    While an outcome was an error, the worker calls ``apply`` and ``prune`` again about once a
    second; objects that are not due yet (``Backoff``) are left alone then.
    """

    name: str
    more: bool

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        """The plan changed: items by plan key; those of other kinds are ignored. No kernel work.

        The first call carries the whole plan. Items have passed kilo.netctl.validate.
        """

    def load(self) -> None:
        """Read what the kernel has of ours. Changes nothing. Raises TemporaryError."""

    def apply(self) -> list[Outcome]:
        """Add what is missing and change what differs. Outcomes of the objects touched, alone."""

    def prune(self) -> list[Outcome]:
        """Remove what is ours and no longer wanted."""

    def clean_up(self) -> list[Outcome]:
        """Remove all that is ours: the end of the agent on this host."""


class Delta(Generic[K, V]):
    """Desired and actual state, and the keys at which they differ.

    ``same(wanted, actual)`` decides whether an object needs no change; equality if not given.
    """

    def __init__(self, same: Callable[[V, V], bool] | None = None) -> None:
        self.desired: dict[K, V] = {}
        self.actual: dict[K, V] = {}
        self.pending: dict[K, None] = {}
        """Keys that differ; a dict for its order, so that objects are changed in the plan's order."""
        self.drifted: set[K] = set()
        """Those pending keys whose actual side moved last."""
        self.on_done: Callable[[K, V | None, V | None], None] | None = None
        """Told of each object that we changed: its key, what it was, and what it is."""
        self._same = same

    def want(self, key: K, value: V) -> bool:
        """``key`` shall be ``value``. Whether that is news."""
        if self.desired.get(key) == value:
            return False
        self.desired[key] = value
        self._check(key, drift=False)
        return True

    def forget(self, key: K) -> None:
        """``key`` is no longer wanted."""
        if self.desired.pop(key, None) is not None:
            self._check(key, drift=False)

    def seen(self, key: K, value: V) -> None:
        """The kernel has ``key`` as ``value``."""
        self.actual[key] = value
        self._check(key, drift=True)

    def lost(self, key: K) -> None:
        """The kernel has no ``key``."""
        if self.actual.pop(key, None) is not None:
            self._check(key, drift=True)

    def loaded(self, actual: dict[K, V]) -> None:
        """The kernel has ``actual`` and nothing else. Takes the mapping over."""
        gone = self.actual.keys() - actual.keys()
        old, self.actual = self.actual, actual
        for key in gone:
            self._check(key, drift=True)
        for key, value in actual.items():
            before = old.get(key)
            if (before is not value and before != value) or key in self.pending:
                self._check(key, drift=True)

    def done(self, key: K, value: V | None) -> None:
        """We made ``key`` be ``value`` (None: we removed it) ourselves."""
        if self.on_done is not None:
            self.on_done(key, self.actual.get(key), value)
        if value is None:
            self.actual.pop(key, None)
        else:
            self.actual[key] = value
        self._check(key, drift=None)

    def check(self, key: K) -> None:
        """Compare ``key`` again: for when something that ``same`` looks at beside the values has moved."""
        self._check(key, drift=True)

    def _check(self, key: K, drift: bool | None) -> None:
        """Compare; ``drift``: which side has moved, the actual or the desired one, or None for neither."""
        wanted, actual = self.desired.get(key), self.actual.get(key)
        if wanted is None or actual is None:
            equal = wanted is actual
        else:
            equal = wanted == actual if self._same is None else self._same(wanted, actual)
        if equal:
            self.pending.pop(key, None)
            self.drifted.discard(key)
        else:
            fresh = key not in self.pending
            self.pending[key] = None
            if drift is False:
                self.drifted.discard(key)
            elif drift and fresh:
                self.drifted.add(key)

    def changes(self) -> Iterator[tuple[K, V, V | None]]:
        """What to add or change: key, wanted, and actual (None if it is not there)."""
        for key in list(self.pending):
            wanted = self.desired.get(key)
            if wanted is not None:
                yield key, wanted, self.actual.get(key)

    def removals(self) -> Iterator[tuple[K, V]]:
        """What to remove: key and actual."""
        for key in list(self.pending):
            if key not in self.desired and key in self.actual:
                yield key, self.actual[key]


class Backoff(Generic[K]):
    """When an object that failed is due again: 1, 2, 4 … 60 seconds later. ``now``: monotonic seconds."""

    FIRST = 1.0
    LIMIT = 60.0

    def __init__(self) -> None:
        self._waits: dict[K, tuple[float, float]] = {}

    def failing(self) -> list[K]:
        """The objects that failed and have not worked since."""
        return list(self._waits)

    def due(self, key: K, now: float) -> bool:
        """Whether ``key`` may be tried: it never failed, or its wait is over."""
        return key not in self._waits or now >= self._waits[key][0]

    def failed(self, key: K, now: float) -> None:
        """``key`` failed: its wait doubles."""
        wait = min(self._waits[key][1] * 2, self.LIMIT) if key in self._waits else self.FIRST
        self._waits[key] = (now + wait, wait)

    def worked(self, key: K) -> None:
        """``key`` works, or is no longer wanted."""
        self._waits.pop(key, None)

    def again(self, key: K) -> None:
        """``key`` has other circumstances now: it is due at once."""
        if key in self._waits:
            self._waits[key] = (0.0, self._waits[key][1])

    def reset(self) -> None:
        """Circumstances changed (a device appeared): everything is due at once."""
        self._waits = {key: (0.0, wait) for key, (_, wait) in self._waits.items()}
