"""A pass: every reconciler in order, so that the kernel comes to match the plan.

First ``apply`` of all, devices before what needs them, then ``prune`` of all, the other way round.
Where one breaks, what it may still need is not pruned.
One step runs in each round of the loop, so that heartbeats and events are served in between. The
plan moves between passes only: what comes in the middle of one waits for the next.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

from kilo.bus import Loop
from kilo.errors import TemporaryError
from kilo.log import Logger
from kilo.model.plan import PlanItem
from kilo.netctl.failures import HOST, all_of
from kilo.netctl.fights import Fights
from kilo.netctl.reconcile import Outcome, Reconciler
from kilo.worker import Reporter

RETRY = 1.0
_NAMED = 10

Step = tuple[Reconciler, Callable[[], list[Outcome]]]


class Passes:
    """Runs passes over ``reconcilers``, in this order, when ``request`` asks for one.

    ``before`` runs at the start of a pass, ``prepare`` before each step, ``after`` at its end with
    whether all is as planned. ``take`` gets the plan's changes before any reconciler does, at the start
    of the pass that is made with them. Until the first ``plan`` only ``early`` is applied.
    ``fights``: those that the reconcilers ask and tell.
    """

    def __init__(
        self,
        loop: Loop,
        report: Reporter,
        log: Logger,
        reconcilers: Sequence[Reconciler],
        early: Reconciler,
        fights: Fights,
    ) -> None:
        self.planned = False
        self.whole = False
        """The pass that runs, or ran last, was made with a plan, and over a host that could be read."""
        self.repairs = 0
        self.fought: set[str] = set()
        """Objects that somebody else keeps changing."""
        self.before: Callable[[], None] = lambda: None
        self.take: Callable[[Mapping[str, PlanItem], Collection[str]], None] = lambda upserts, removals: None
        self.prepare: Callable[[Reconciler], None] = lambda reconciler: None
        self.after: Callable[[bool], None] = lambda settled: None
        self._loop = loop
        self._report = report
        self._log = log
        self._all = list(reconcilers)
        self._early = early
        self._steps: deque[Step] = deque()
        self._running = False
        self._begun = 0.0
        self._wanted = False
        self._retrying = False
        self._unread: list[Reconciler] = list(reconcilers)
        self._upserts: dict[str, PlanItem] = {}
        self._removals: set[str] = set()
        self._taken = False
        self._failed = False
        self._fights = fights
        self._told: set[str] = set()
        self._open: dict[str, bool] = {}
        """Objects whose last outcome was an error, whether or not this pass tried them again; and
        whether they are left undone on purpose."""
        self._settled = False
        """There was a pass after which all was as planned: from then on a drift is one."""
        self._changed: list[Outcome] = []

    def plan(self, upserts: Mapping[str, PlanItem], removals: Collection[str], usable: bool) -> None:
        """The plan changed; the first call carries all of it. Asks for a pass.

        Until it has been ``usable`` once, it is kept, and the kernel stays as it is.
        """
        self.planned = self.planned or usable
        for key in removals:
            self._upserts.pop(key, None)
            self._removals.add(key)
        self._upserts.update(upserts)
        self._removals.difference_update(upserts)
        self.request()

    def reread(self, reconcilers: Sequence[Reconciler] = ()) -> None:
        """In the next pass read what the kernel has, of these or of all, before comparing."""
        for reconciler in reconcilers or self._all:
            if reconciler not in self._unread:
                self._unread.append(reconciler)

    def is_unread(self, reconciler: Reconciler) -> bool:
        """Whether ``reconciler`` does not know what the kernel has."""
        return reconciler in self._unread

    def request(self) -> None:
        """A pass shall start soon, or again if one is running."""
        if self._running:
            self._wanted = True
        else:
            self._running = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._wanted = self._failed = self.whole = False
        self._begun = time.monotonic()
        self._changed = []
        if not self.planned:
            self._steps = deque([(self._early, self._early.apply)])
        else:
            self._steps = deque((r, r.apply) for r in self._all)
            self._steps.extend((r, r.prune) for r in reversed(self._all))
        try:
            self.before()
            self._take_plan()
        except TemporaryError as e:
            self._fail(HOST, e)
            self._steps.clear()
        except Exception as e:  # noqa: BLE001 - a pass that does not end would be the last one
            self._unexpected(HOST, e)
            self._steps.clear()
        else:
            self.whole = self.planned
            self._report.mend(HOST)
        self._loop.call_soon(self._next)

    def _take_plan(self) -> None:
        if not self.planned:
            return
        upserts, self._upserts = self._upserts, {}
        removals, self._removals = self._removals, set()
        if self._taken and not upserts and not removals:
            return
        try:
            self.take(upserts, removals)
            for reconciler in self._all:
                reconciler.update(upserts, removals)
        except Exception:  # whoever has not heard of it yet is told in the next pass, the others again
            self._upserts, self._removals = upserts, removals
            raise
        self._taken = True

    def _next(self) -> None:
        if not self._steps:
            self._end()
            return
        reconciler, work = self._steps[0]
        try:
            self.prepare(reconciler)
            if reconciler in self._unread:
                reconciler.load()
                self._unread.remove(reconciler)
            self._take(work())
        except TemporaryError as e:
            self._fail(all_of(reconciler.name), e)
            self.reread([reconciler])
            self._keep_what_is_needed(reconciler)
        except Exception as e:  # noqa: BLE001 - as above
            self._unexpected(all_of(reconciler.name), e)
            self.reread([reconciler])
            self._keep_what_is_needed(reconciler)
        else:
            self._report.mend(all_of(reconciler.name))
            if not reconciler.more:
                self._steps.popleft()
        self._loop.call_soon(self._next)

    def _keep_what_is_needed(self, broken: Reconciler) -> None:
        """Leave out the rest of the broken one's steps, and the pruning of what it may still need."""
        kept = self._all[: self._all.index(broken) + 1]
        self._steps.popleft()
        self._steps = deque(step for step in self._steps if step[0] not in kept or step[1] != step[0].prune)

    def _unexpected(self, key: str, error: Exception) -> None:
        """An error of ours, not of the kernel's: it costs its step, and the next pass comes all the same."""
        self._log.error("unexpected", failing=key, trace="".join(traceback.format_exception(error)))
        self._fail(key, error)

    def _fail(self, key: str, error: Exception) -> None:
        self._failed = True
        self._report.fail(key, f"{key}: {error}")

    def _take(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.error:
                self._open[outcome.key] = outcome.deliberate
                told = self._report.failing.get(outcome.key)
                if not (outcome.waits and told and told.message == outcome.error):
                    self._report.fail(outcome.key, outcome.error)
                continue
            self._open.pop(outcome.key, None)
            self._report.mend(outcome.key)
            self._changed.append(outcome)

    def _end(self) -> None:
        self._running = False
        self._tell_fights()
        self._tell_changes()
        lost = any(self._fights.lost(key, self._begun) for key in self.fought)
        failed = self._failed or lost or not all(self._open.values())
        settled = self.whole and not failed
        self._settled = self._settled or settled
        if self._wanted:
            self.request()
        elif (self._failed or self._open or self.fought) and not self._retrying:
            self._retrying = True
            self._loop.call_later(RETRY, self._retry)
        self.after(settled)  # last: what it raises must not cost the next pass

    def _tell_changes(self) -> None:
        """Say what was changed; who is fought is told of once, and not at every blow."""
        repaired = [outcome.key for outcome in self._changed if outcome.repair and self._settled]
        self.repairs += len(repaired)
        news = [o for o in self._changed if o.repair and self._settled and o.key not in self.fought]
        removed: dict[str, list[str]] = {}
        for outcome in news:
            if outcome.removed:
                removed.setdefault(outcome.removed.kind, []).append(outcome.removed.what)
        for kind, objects in removed.items():
            self._log.warn(_removed(kind, len(objects)), count=len(objects), objects=objects[:_NAMED])
        mended = [outcome.key for outcome in news if not outcome.removed]
        if mended:
            self._log.warn("repaired", count=len(mended), objects=mended[:_NAMED])
        elif self._changed and not repaired:
            keys = [outcome.key for outcome in self._changed[:_NAMED]]
            self._log.info("applied", count=len(self._changed), objects=keys)

    def _tell_fights(self) -> None:
        """Some objects are named; all are counted."""
        self.fought = self._fights.going_on(time.monotonic())
        for key in self._told - self.fought:
            self._told.discard(key)
            self._report.mend(f"fight/{key}")
        for key in sorted(self.fought - self._told)[: _NAMED - len(self._told)]:
            self._told.add(key)
            self._report.fail(
                f"fight/{key}", f"somebody keeps undoing {key}; it is repaired less and less often", "fight"
            )

    def _retry(self) -> None:
        self._retrying = False
        self.request()


def _removed(kind: str, count: int) -> str:
    if count == 1:
        return f"removed {'an' if kind[0] in 'aeiou' else 'a'} {kind} that is not planned"
    return f"removed {count} {kind}{'es' if kind.endswith('s') else 's'} that are not planned"
