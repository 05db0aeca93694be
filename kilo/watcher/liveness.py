"""Which nodes are alive, judged by when their ``last-seen`` changes and never by what it says.

Pure: the time comes in as an argument, ``now`` in monotonic seconds and ``wall`` in Unix seconds.
The rules:

* a node is alive for 60 s after its last-seen was seen to change, so its clock may be wrong;
* a node that is seen for the first time is judged by its timestamp, there being nothing else;
* only time in which the API speaks counts. Nobody dies of its silence, and after an outage
  everybody has the full 60 s again, from the first sign of life of the API;
* an API that can be read but takes no check-in of ours takes none of the others' either: that, too,
  is an outage;
* where the API could not be reached when we started, a first timestamp says nothing: nobody could
  check in. It is given the same 60 s.
"""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 60.0
"""s; twice the period in which every agent checks in."""
SILENCE = 75.0
"""s; if the API says nothing for longer, it was away. Bookmarks come every 60 s, own check-ins every 30."""
READING = "reading"
WRITING = "writing"


@dataclass(slots=True)
class _Sighting:
    last_seen: int
    arrived: float
    alive: bool


class Liveness:
    """Keeps one sighting a node."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Sighting] = {}
        self._contact: float | None = None
        self._settled = 0.0
        self._since = float("-inf")
        self._away: set[str] = set()
        self._blind = False

    def contact(self, now: float) -> None:
        """The API said something to read, whatever it was."""
        if self._contact is None:
            self._blind = READING in self._away
        elif now - self._contact > SILENCE:
            self._since = now
        self._contact = now
        self._back(READING, now)

    def wrote(self, now: float) -> None:
        """The API took what we wrote."""
        self._back(WRITING, now)

    def lost(self, what: str) -> None:
        """The API could not be reached, or failed, for READING or for WRITING."""
        self._away.add(what)

    def _back(self, what: str, now: float) -> None:
        if what in self._away:
            self._away.discard(what)
            self._since = now

    def listed(self) -> None:
        """The first complete list has been taken in: whoever appears from now on is judged as usual."""
        self._blind = False

    def sight(self, name: str, last_seen: int, now: float, wall: float) -> bool:
        """A node's ``last_seen`` (Unix s, 0 for none) is on the table. Whether this changed who is alive."""
        old = self._nodes.get(name)
        if old is None:
            age = 0.0 if self._blind else max(0.0, wall - last_seen)
            alive = last_seen > 0 and age < LIMIT
            self._nodes[name] = _Sighting(last_seen, now - age, alive)
            return alive
        if old.last_seen == last_seen:
            return False
        was, alive = old.alive, last_seen > 0
        old.last_seen, old.arrived, old.alive = last_seen, now, alive
        return was != alive

    def forget(self, name: str) -> None:
        """The node is gone."""
        self._nodes.pop(name, None)

    def alive(self, name: str) -> bool:
        """Whether the node was alive when last judged; unknown nodes are not."""
        node = self._nodes.get(name)
        return node is not None and node.alive

    def judge(self) -> list[str]:
        """The nodes that have died. Call it every few seconds.

        Measured against the API's last sign of life as of the call before: what came behind that
        sign, in the same burst, has been taken in by now.
        """
        settled, contact = self._settled, self._contact
        self._settled = 0.0 if contact is None else contact
        if self._away:
            return []
        dead = []
        for name, node in self._nodes.items():
            if node.alive and settled - max(node.arrived, self._since) > LIMIT:
                node.alive = False
                dead.append(name)
        return dead
