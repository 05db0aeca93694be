"""The reconciler of objects that routing netlink adds and deletes one by one: addresses, routes, rules.

A kind of object gives four things: what a plan item means as an object (``_wanted``), what is there
(``_read``), and the messages that put one and drop one. All else is the same for every kind: the
difference, batches, errors that cost their own object only, retries, and objects that must wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from kilo.model.plan import PlanItem
from kilo.netctl.fights import Fights
from kilo.netctl.netlink.socket import KernelError, Netlink, Request
from kilo.netctl.reconcile import Backoff, Delta, Outcome, Removed

V = TypeVar("V")
CHUNK = 1000
"""Objects changed in one call: some 20 ms of work."""


@dataclass(frozen=True)
class Withheld:
    """Why an item cannot be had now. ``keep``: what is there under the item's key stays meanwhile.

    ``deliberate`` as in Outcome.
    """

    reason: str
    keep: bool = True
    deliberate: bool = False


class Objects(Generic[V]):
    """See the module's text. ``name`` is the kind's, in the plural, and ``kind`` in the singular."""

    name = "objects"
    kind = "object"
    item_types: tuple[type, ...] = ()
    gone: frozenset[int] = frozenset()
    """Error numbers that say, on deletion, that there is nothing to delete."""

    def __init__(
        self,
        netlink: Netlink,
        same: Callable[[V, V], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.more = False
        self.fights = Fights()
        self.delta: Delta[str, V] = Delta(same)
        self._netlink = netlink
        self._clock = clock
        self._items: dict[str, PlanItem] = {}
        self._objects: dict[str, str] = {}
        self._withheld: dict[str, Withheld] = {}
        self._told: dict[str, tuple[str, str]] = {}
        """Reasons for which something is withheld: an item as an example, and what was said."""
        self._backoff: Backoff[str] = Backoff()

    # What a kind gives.

    def _wanted(self, item: PlanItem) -> V | Withheld | None:
        """The object that ``item`` stands for, on this host and now; None if it stands for none."""
        raise NotImplementedError

    def _key(self, item_key: str, wanted: V) -> str:
        """The key of the object that the item under ``item_key`` stands for."""
        return item_key

    def _read(self) -> dict[str, V]:
        """Ours, by key; an object that no plan item could mean has a key with a ``#`` in it."""
        raise NotImplementedError

    def _stays(self, key: str) -> bool:
        """Whether what is there as ``key`` may be what an item that is withheld stands for."""
        held = self._withheld.get(key)
        return held is not None and held.keep

    def _put(self, key: str, wanted: V, actual: V | None) -> list[Request]:
        """The messages that make ``wanted`` of ``actual``."""
        raise NotImplementedError

    def _drop(self, key: str, actual: V) -> list[Request]:
        """The messages that remove ``actual``."""
        raise NotImplementedError

    def _explain(self, key: str, error: KernelError) -> str:
        """What went wrong with ``key``, for a person."""
        return f"{key}: {error}"

    def _shown(self, key: str, actual: V) -> str:
        """What is there as ``key``, for a person."""
        return key.partition("/")[2]

    # The reconciler.

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        for key in removals:
            if self._items.pop(key, None) is not None:
                self._withheld.pop(key, None)
                self._place(key, None)
        for key, item in upserts.items():
            if isinstance(item, self.item_types):
                self._items[key] = item
                self._resolve(key, item)

    def resolve(self) -> None:
        """See again what the plan means.

        What means something else now is due at once; the rest waits for as long as it had to.
        """
        for key, item in self._items.items():
            self._resolve(key, item)

    def retry(self) -> None:
        """What failed may work now, since a device came or went: everything is due at once."""
        self._backoff.reset()

    def _resolve(self, item_key: str, item: PlanItem) -> None:
        wanted = self._wanted(item)
        if isinstance(wanted, Withheld):
            self._withheld[item_key] = wanted
            self._place(item_key, None)
        else:
            self._withheld.pop(item_key, None)
            self._place(item_key, wanted)

    def _place(self, item_key: str, wanted: V | None) -> None:
        """The item stands for ``wanted`` now, and no more for what it stood for before."""
        key = None if wanted is None else self._key(item_key, wanted)
        old = self._objects.pop(item_key, None)
        if old is not None and old != key:
            self.delta.forget(old)
        if wanted is not None and key is not None:
            self._objects[item_key] = key
            if self.delta.want(key, wanted):
                self._backoff.again(key)

    def absent(self) -> set[str]:
        """Items whose object is not there and cannot be put now: they are withheld, or the kernel refuses."""
        actual = self.delta.actual
        found = {key for key, held in self._withheld.items() if not held.keep or key not in actual}
        return found.union(key for key in self._backoff.failing() if key not in actual)

    def load(self) -> None:
        self.delta.loaded(self._read())

    def apply(self) -> list[Outcome]:
        now = self._clock()
        work: list[tuple[str, list[Request], V | None]] = []
        for key, wanted, actual in self.delta.changes():
            if self._due(key, now):
                work.append((key, self._put(key, wanted, actual), wanted))
                if len(work) == CHUNK:
                    break
        self.more = len(work) == CHUNK
        return self._run(work, now) + list(self._mended()) + list(self._waiting())

    def prune(self) -> list[Outcome]:
        now = self._clock()
        work: list[tuple[str, list[Request], V | None]] = []
        for key, actual in self.delta.removals():
            if not self._stays(key) and self._due(key, now):
                work.append((key, self._drop(key, actual), None))
                if len(work) == CHUNK:
                    break
        self.more = len(work) == CHUNK
        return self._run(work, now) + list(self._mended())

    def clean_up(self) -> list[Outcome]:
        self.update({}, list(self._items))
        self._backoff.reset()
        self.load()
        outcomes = self.prune()
        while self.more:
            outcomes += self.prune()
        return outcomes

    def _due(self, key: str, now: float) -> bool:
        """Whether ``key``, which is not as it should be, may be changed now."""
        fought = key in self.delta.drifted and not self.fights.may_repair(key, now)
        return not fought and self._backoff.due(key, now)

    def _run(self, work: list[tuple[str, list[Request], V | None]], now: float) -> list[Outcome]:
        """Send the messages of each object; on success it is as wanted, or gone (None)."""
        if not work:
            return []
        errors = iter(self._netlink.change([request for _, requests, _ in work for request in requests]))
        outcomes = []
        for key, requests, value in work:
            refusals = [error for _ in requests if (error := next(errors)) is not None]
            if value is None:
                refusals = [error for error in refusals if error.errno not in self.gone]
            if refusals:
                self._backoff.failed(key, now)
                outcomes.append(Outcome(key, self._explain(key, refusals[0])))
                continue
            repair = key in self.delta.drifted
            if repair:
                self.fights.repaired(key, now)
            actual = self.delta.actual.get(key)
            removed = None
            if repair and value is None and actual is not None:
                removed = Removed(self.kind, self._shown(key, actual))
            outcomes.append(Outcome(key, repair=repair, removed=removed))
            self._backoff.worked(key)
            self.delta.done(key, value)
        return outcomes

    def _mended(self) -> Iterator[Outcome]:
        """Objects that had failed and need nothing any more."""
        for key in self._backoff.failing():
            if key not in self.delta.pending:
                self._backoff.worked(key)
                yield Outcome(key)

    def _waiting(self) -> Iterator[Outcome]:
        """What is withheld, one outcome for each reason, with an item as an example.

        What is said stays the same while the example waits, however many others come and go.
        """
        waiting: dict[str, list[str]] = {}
        for key, withheld in self._withheld.items():
            waiting.setdefault(withheld.reason, []).append(key)
        for reason in self._told.keys() - waiting.keys():
            del self._told[reason]
            yield Outcome(f"{self.name}: {reason}")
        for reason, keys in waiting.items():
            example, said = self._told.get(reason, ("", ""))
            held = self._withheld.get(example)
            if held is None or held.reason != reason:
                of = keys[0] if len(keys) == 1 else f"{self.name} such as {keys[0]}"
                said = f"{of}: {reason}"
                self._told[reason] = keys[0], said
            deliberate = self._withheld[keys[0]].deliberate
            yield Outcome(f"{self.name}: {reason}", said, waits=True, deliberate=deliberate)
