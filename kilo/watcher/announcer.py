"""Our own Node's annotations: what mesh announces, and a check-in every 30 s.

A thread does the requests, since an API that is away must not hold up the loop. It works on the
newest values, never on a queue: the announcement, and what the Node says as far as we know. What
it finds is handed to ``emit``, on its thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import tenacity

from kilo.errors import ProtocolError
from kilo.model.node import Announcement
from kilo.watcher.client import Api, ApiError
from kilo.watcher.objects import NodeObject, decode_node
from kilo.watcher.stream import pause
from kilo.watcher.syntax import integer
from kilo.watcher.translate import ANNOTATIONS_TO_REMOVE, LAST_SEEN, PREFIX, annotations_of

CHECK_IN_EVERY = 30.0
CLEAN_UP_WITHIN = 5.0
BURST, BURST_PERIOD = 5, 10.0
"""At most so many patches in so many seconds; a check-in is always sent."""
FIGHT_WINDOW = 60.0
FIGHT_LIMIT = 3
"""So often in that window may somebody else overwrite us; from then on we answer at check-ins only."""


@dataclass(frozen=True)
class Patched:
    """The API took a patch. ``version``: of the Node since then, which a watch must bring, too."""

    version: str


@dataclass(frozen=True)
class PatchFailed:
    """It did not, and will be asked again."""

    error: ApiError


@dataclass(frozen=True)
class Overwritten:
    """Somebody else keeps writing these annotations of ours; empty when that has ended."""

    names: tuple[str, ...]


Report = Patched | PatchFailed | Overwritten


class Announcer:
    """``announce``, ``observe`` and ``close`` may be called from any thread."""

    def __init__(self, api: Api, node: str, emit: Callable[[Report], None]) -> None:
        self._api = api
        self._node = node
        self._path = f"/api/v1/nodes/{node}"
        self._what = f"patch node {node}"
        self._emit = emit
        self._wake = threading.Condition()
        self._announcement: Announcement | None = None
        self._seen: dict[str, str] | None = None
        self._version = ""
        self._written: dict[str, str] = {}
        self._sent: dict[str, set[str]] = {}
        """What was sent and has not been answered: it may be there all the same, and the watch may bring
        it before the answer comes."""
        self._overwritten: list[float] = []
        self._fighting = False
        self._checked_in = float("-inf")
        self._stop = threading.Event()
        self._recent: deque[float] = deque(maxlen=BURST)
        self._unremoved = ""
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether its thread is alive."""
        return self._thread.is_alive()

    def announce(self, announcement: Announcement) -> None:
        """This is what the annotations are to say from now on."""
        with self._wake:
            self._announcement = announcement
            self._wake.notify()

    def observe(self, node: NodeObject) -> None:
        """Our Node as the API gives it."""
        with self._wake:
            if self._take(node):
                self._note_overwriting(time.monotonic())
                self._wake.notify()

    def forget(self) -> None:
        """Our Node is gone; another may come in its place."""
        with self._wake:
            self._seen, self._version = None, ""
            self._written.clear()
            self._sent.clear()

    def close(self, remove: bool) -> str:
        """End. With ``remove``, take our annotations away first, within 5 s; why that failed, or ""."""
        with self._wake:
            if remove:
                self._unremoved = "no answer in time"
            self._stop.set()
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(CLEAN_UP_WITHIN if remove else 0)
        elif remove:  # never started: what an earlier run has written goes all the same
            self._clean_up()
        return self._unremoved

    def _take(self, node: NodeObject) -> bool:
        """Note what the Node says, unless we know newer. Whether it is news."""
        version = node.metadata.resource_version
        if self._version.isdigit() and version.isdigit() and int(version) <= int(self._version):
            return False
        self._version, self._seen = version, dict(node.annotations)
        return True

    def _note_overwriting(self, now: float) -> None:
        """Count it when what we wrote, and still want to say, is not there any more."""
        seen = self._seen or {}
        lost = [
            k
            for k, v in self._written.items()
            if k != LAST_SEEN and seen.get(k) not in (v, *self._sent.get(k, ()))
        ]
        if LAST_SEEN in self._written and not _is_time(seen.get(LAST_SEEN, "")):
            lost.append(LAST_SEEN)
        if not lost:
            return
        for name in lost:
            del self._written[name]
        self._overwritten = [t for t in self._overwritten if now - t < FIGHT_WINDOW] + [now]
        if len(self._overwritten) >= FIGHT_LIMIT:
            self._fighting = True
            self._emit(Overwritten(tuple(sorted(name.removeprefix(PREFIX) for name in lost))))

    def _patch(self, announcement: Announcement) -> dict[str, str]:
        """What differs, and a check-in."""
        wanted = annotations_of(announcement, int(time.time()))
        seen = self._seen or {}
        return {k: v for k, v in wanted.items() if k == LAST_SEEN or seen.get(k) != v}

    def _due(self, now: float) -> float | None:
        """When something must be written, None while there is nothing to announce."""
        if self._announcement is None:
            return None
        check_in = self._checked_in + CHECK_IN_EVERY
        counted = self._seen is None or _is_time(self._seen.get(LAST_SEEN, ""))
        if self._fighting or (counted and len(self._patch(self._announcement)) == 1):
            return check_in
        full = len(self._recent) == BURST
        return min(check_in, self._recent[0] + BURST_PERIOD if full else now)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._stop.is_set():
                    now = time.monotonic()
                    due = self._due(now)
                    if due is not None and due <= now:
                        break
                    self._wake.wait(None if due is None else due - now)
            if self._stop.is_set():
                break
            try:
                self._persist()
            except Exception as e:  # noqa: BLE001 - the thread's main loop
                self._emit(PatchFailed(ApiError(f"cannot {self._what}: {type(e).__name__}: {e}")))
                self._stop.wait(CHECK_IN_EVERY / 2)
        if self._unremoved:
            self._clean_up()

    def _persist(self) -> None:
        """Write until it works, at each attempt what is newest then."""
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(ApiError),
            wait=pause,
            stop=tenacity.stop_when_event_set(self._stop),
            sleep=tenacity.sleep_using_event(self._stop),
            before_sleep=self._failed,
            reraise=True,
        )
        try:
            attempts(self._write)
        except ApiError:
            return  # told to stop

    def _failed(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ApiError):
            self._emit(PatchFailed(error))

    def _write(self) -> None:
        now = time.monotonic()
        with self._wake:
            if self._announcement is None:
                return
            patch = self._patch(self._announcement)
            for name in patch.keys() - {LAST_SEEN}:
                self._sent.setdefault(name, set()).add(patch[name])
        answer = self._api.patch(self._path, {"metadata": {"annotations": patch}}, self._what)
        node = self._read(answer)
        with self._wake:
            self._checked_in = now
            self._recent.append(now)
            self._take(node)
            newest, seen = node.metadata.resource_version == self._version, self._seen or {}
            for name, value in patch.items():
                self._sent.pop(name, None)
                if newest or seen.get(name) == value:
                    self._written[name] = value
            if newest:  # what is not in the answer was changed on the way in
                self._note_overwriting(now)
            if self._fighting and all(now - t >= FIGHT_WINDOW for t in self._overwritten):
                self._fighting = False
                self._emit(Overwritten(()))
        self._emit(Patched(node.metadata.resource_version))

    def _read(self, answer: bytes) -> NodeObject:
        """Our Node as it is since a patch. Raises ApiError if the answer is anything else."""
        try:
            node = decode_node(answer)
        except ProtocolError as e:
            raise ApiError(f"cannot {self._what}: {e}") from e
        if node.metadata.name != self._node:
            raise ApiError(f"cannot {self._what}: the answer is not about this node")
        return node

    def _clean_up(self) -> None:
        """Take away what an agent of this node has written, now or in an earlier run."""
        patch = {"metadata": {"annotations": dict.fromkeys(ANNOTATIONS_TO_REMOVE)}}
        end = time.monotonic() + CLEAN_UP_WITHIN - 1
        while (left := end - time.monotonic()) > 0:
            try:
                self._api.patch(self._path, patch, self._what, left)
            except ApiError as e:
                self._unremoved = "" if e.status == 404 else str(e)
                if 400 <= e.status < 500:
                    return
                time.sleep(0.5)
            else:
                self._unremoved = ""
                return


def _is_time(last_seen: str) -> bool:
    """Whether others can take this for a check-in; if not, they have dropped the node already."""
    value, malformed = integer(last_seen)
    return value > 0 and not malformed
