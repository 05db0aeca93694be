"""Which nodes are alive, judged by when their ``last-seen`` changes and never by what it says.

Pure: the time comes in as an argument, ``now`` in monotonic seconds and ``wall`` in Unix seconds.
The rules:

* a node is alive for 60 s after its last-seen was seen to change, so its clock may be wrong;
* a node that is seen for the first time is alive while its timestamp says so. An older one says
  nothing certain: the clock may be wrong, or an outage may have kept everybody from checking in.
  The node is in doubt until it has had the same 60 s to change it. Mesh keeps nodes in doubt that
  this host has routes to, and lets in no others: traffic that flows goes on, and who died long ago
  does not come back;
* only time in which the API speaks counts. Nobody dies of its silence, and after an outage
  everybody has the full 60 s again, from the first sign of life of the API;
* an API that can be read but takes no check-in of ours takes none of the others' either: that, too,
  is an outage.
"""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 60.0
"""s; twice the period in which every agent checks in."""
SILENCE = 75.0
"""s; if the API says nothing for longer, it was away. Bookmarks come every 60 s, own check-ins every 30."""
READING = "reading"
WRITING = "writing"
ALIVE, DOUBTFUL, DEAD = "alive", "doubtful", "dead"


@dataclass(slots=True)
class _Sighting:
    last_seen: int
    arrived: float
    """When last_seen changed, or, for the first, when it says that it was written."""
    first: float
    """When the node was first seen; once last_seen has changed, no later than ``arrived``."""
    checked_in: int
    """Unix s of the last check-in: when last_seen changed, or, for the first, what it says; 0 for none."""
    state: str


class Liveness:
    """Keeps one sighting a node."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Sighting] = {}
        self._contact: float | None = None
        self._settled = 0.0
        self._since = float("-inf")
        self._away: set[str] = set()

    def contact(self, now: float) -> None:
        """The API said something to read, whatever it was."""
        if self._contact is not None and now - self._contact > SILENCE:
            self._since = now
        self._contact = now
        self._back(READING, now)

    def wrote(self, now: float) -> None:
        """The API took what we wrote."""
        self._back(WRITING, now)

    def lost(self, what: str) -> None:
        """The API could not be reached, or failed, for READING or for WRITING."""
        self._away.add(what)

    @property
    def away(self) -> bool:
        """Whether the API is known not to be reached, for reading or for writing."""
        return bool(self._away)

    def _back(self, what: str, now: float) -> None:
        if what in self._away:
            self._away.discard(what)
            self._since = now

    def sight(self, name: str, last_seen: int, now: float, wall: float) -> bool:
        """A node's ``last_seen`` (Unix s, 0 for none) is on the table. Whether this changed who is alive."""
        old = self._nodes.get(name)
        if old is None:
            age = max(0.0, wall - last_seen)
            state = DEAD if last_seen <= 0 else ALIVE if age < LIMIT else DOUBTFUL
            checked_in = min(max(last_seen, 0), int(wall))
            self._nodes[name] = _Sighting(last_seen, now - age, now, checked_in, state)
            return state != DEAD
        if old.last_seen == last_seen:
            return False
        was, state = old.state, ALIVE if last_seen > 0 else DEAD
        old.last_seen, old.arrived, old.first, old.state = last_seen, now, now, state
        old.checked_in = int(wall) if last_seen > 0 else 0
        return was != state

    def forget(self, name: str) -> None:
        """The node is gone."""
        self._nodes.pop(name, None)

    def alive(self, name: str) -> bool:
        """Whether the node was alive when last judged; unknown nodes are not."""
        return self._state(name) == ALIVE

    def doubtful(self, name: str) -> bool:
        """Whether nothing certain was known of the node when last judged."""
        return self._state(name) == DOUBTFUL

    def checked_in(self, name: str) -> int:
        """When the node checked in last, in Unix s by the clock of this host; 0 if it has not."""
        node = self._nodes.get(name)
        return node.checked_in if node else 0

    def _state(self, name: str) -> str:
        node = self._nodes.get(name)
        return DEAD if node is None else node.state

    def judge(self) -> list[str]:
        """The nodes that have died, or have come into doubt. Call it every few seconds.

        Measured against the API's last sign of life as of the call before: what came behind that
        sign, in the same burst, has been taken in by now.
        """
        settled, contact = self._settled, self._contact
        self._settled = 0.0 if contact is None else contact
        if self._away:
            return []
        changed = []
        for name, node in self._nodes.items():
            if node.state == DEAD or settled - max(node.arrived, self._since) <= LIMIT:
                continue
            state = DEAD if settled - max(node.first, self._since) > LIMIT else DOUBTFUL
            if node.state != state:
                node.state = state
                changed.append(name)
        return changed
