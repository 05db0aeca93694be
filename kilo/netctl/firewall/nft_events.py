"""Hears from nf_tables what somebody else changes about ours.

Others may change a great deal (kube-proxy does), so an event is judged by its first bytes where that
is enough. Called by kilo.netctl.firewall.nft.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kilo.netctl.firewall.backend import Readers
from kilo.netctl.firewall.layout import HOOKS, OUR_CHAINS
from kilo.netctl.firewall.nft_layout import HOST_TABLES, TABLE
from kilo.netctl.firewall.nft_messages import (
    DELCHAIN,
    DELRULE,
    DELTABLE,
    FAMILIES,
    GROUP,
    HEADER,
    NEWCHAIN,
    NEWRULE,
    NEWTABLE,
    chain_of,
    of_table,
)
from kilo.netctl.netlink.socket import EVENT_BUFFER, NETLINK_NETFILTER, Events, EventsLost, Message

_LIMIT = 2000
"""Events read in one go: some 10 ms of work."""
FIGHT = 10
"""With as many repairs within _MEMORY, somebody else means what he does."""
_MEMORY, _LONGEST = 60.0, 30.0
"""Seconds."""
_OWN = of_table(4, TABLE)[HEADER:]
_HOST = tuple(of_table(4, table)[HEADER:] for table in HOST_TABLES)
_FAMILIES = tuple(FAMILIES.values())
_OF_CHAINS = (NEWCHAIN, DELCHAIN, NEWRULE, DELRULE)
_OF_TABLES = (NEWTABLE, DELTABLE)


class NftEvents:
    """``own_port``: the port of the socket whose changes are our own.

    Where somebody undoes each repair of ours, each makes an event that makes the next: after a few,
    ``on_drift`` waits longer and longer. ``repairs`` says how many there were in the last minute.
    """

    def __init__(
        self, own_port: Callable[[], int], clock: Callable[[], float], buffer: int = EVENT_BUFFER
    ) -> None:
        self._own_port = own_port
        self._clock = clock
        self._buffer = buffer
        self._events: Events | None = None
        self._readers: Readers | None = None
        self._on_drift: Callable[[], None] = lambda: None
        self._waiting = False
        self._repairs: deque[float] = deque()

    def watch(self, readers: Readers, on_drift: Callable[[], None]) -> None:
        """Call ``on_drift`` for changes from now on. Raises TemporaryError."""
        self.close()
        self._events = Events(NETLINK_NETFILTER, (GROUP,), self._buffer)
        self._readers, self._on_drift = readers, on_drift
        readers.add_reader(self._events.fileno(), self._readable)

    def close(self) -> None:
        if self._events is not None and self._readers is not None:
            self._readers.remove_reader(self._events.fileno())
            self._events.close()
        self._events = None

    def repaired(self) -> None:
        """Something of ours was not as it had been, and is again."""
        if self._events is not None:
            self._repairs.append(self._clock())

    @property
    def repairs(self) -> int:
        since = self._clock() - _MEMORY
        while self._repairs and self._repairs[0] < since:
            self._repairs.popleft()
        return len(self._repairs)

    def _readable(self) -> None:
        if self._events is None:
            return
        try:
            messages = self._events.read(_LIMIT)
        except EventsLost:
            self._drifted()
            return
        own = self._own_port()
        if any(message.port != own and concerns_us(message) for message in messages):
            self._drifted()

    def _drifted(self) -> None:
        excess = self.repairs - FIGHT
        if excess < 0 or self._readers is None:
            self._on_drift()
        elif not self._waiting:
            self._waiting = True
            self._readers.call_later(min(2.0**excess, _LONGEST), self._waited)

    def _waited(self) -> None:
        self._waiting = False
        self._on_drift()


def concerns_us(message: Message) -> bool:
    """Whether an event is about our table, or about a chain of the host's that we have rules in."""
    start = message.start + HEADER
    if message.data[message.start] not in _FAMILIES:
        return False
    if message.data.startswith(_OWN, start):
        return True
    if not message.data.startswith(_HOST, start):
        return False
    if message.kind in _OF_TABLES:
        return True
    if message.kind not in _OF_CHAINS:
        return False
    chain = chain_of(message)
    return chain in HOOKS or chain.startswith(OUR_CHAINS)
