"""Names of endpoints to addresses, off the main path.

A few threads ask the system's resolver, which may take half a minute to say no; they exist only
while there is something to ask. The last good answer is kept for as long as its name is wanted.
All methods are for the loop's thread, and ``on_change`` is called there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

from kilo.bus import Loop, Timer
from kilo.errors import ProtocolError
from kilo.model.net import Address, parse_ip

IN_FLIGHT = 8
TIMEOUT = 10.0
"""s until a name that is still being asked for counts as failed; its thread goes on asking."""
Lookup = Callable[[str], list[str]]


def lookup(name: str) -> list[str]:
    """The addresses of ``name``. Raises OSError."""
    answers = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return [str(answer[4][0]) for answer in answers]


def addresses_in(answers: Iterable[str]) -> set[Address]:
    """Those of ``answers`` that are addresses."""
    addresses = set()
    for answer in answers:
        with contextlib.suppress(ProtocolError):  # with a zone: of no use to WireGuard
            addresses.add(parse_ip(answer))
    return addresses


def choose(answers: Iterable[str], before: str) -> str:
    """The same of the same answers, in whatever order they come: the one from ``before`` if it is still
    there, else the lowest, IPv4 first as in Go agents. "" if none is an address."""
    addresses = addresses_in(answers)
    if before and ipaddress.ip_address(before) in addresses:
        return before
    return str(min(addresses, key=_order)) if addresses else ""


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


class Resolver:
    """``on_change(name)``: the address of ``name``, or its failure, is another than before."""

    def __init__(
        self, loop: Loop, period: float, on_change: Callable[[str], None], ask: Lookup = lookup
    ) -> None:
        self.failures: dict[str, str] = {}
        """Why a name does not resolve, by name. Its address may still be known, from before."""
        self._loop = loop
        self._on_change = on_change
        self._ask = ask
        self._addresses: dict[str, str] = {}
        self._every: dict[str, tuple[str, ...]] = {}
        self._pinned: set[str] = set()
        self._wanted: set[str] = set()
        self._asking: dict[str, Timer] = {}
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        loop.call_every(period, self._again)

    def address(self, name: str) -> str:
        """The address of ``name``, "" if there never was one. The name is asked for from now on."""
        if name not in self._wanted:
            self._wanted.add(name)
            self._start(name)
        return self._addresses.get(name, "")

    def pin(self, name: str) -> tuple[str, ...]:
        """All addresses of ``name`` as last heard, the lowest first, IPv4 before IPv6. It is asked for from
        now on, for good, and ``on_change`` is told of each of them."""
        self._pinned.add(name)
        self.address(name)
        return self._every.get(name, ())

    @property
    def pending(self) -> bool:
        """Whether a name has had neither an address nor a failure yet."""
        return any(name not in self._addresses and name not in self.failures for name in self._wanted)

    def keep(self, names: set[str]) -> None:
        """Only ``names``, and those pinned, are still wanted."""
        for name in self._wanted - names - self._pinned:
            self._wanted.discard(name)
            self._addresses.pop(name, None)
            self._every.pop(name, None)
            self.failures.pop(name, None)

    def _again(self) -> None:
        for name in self._wanted:
            self._start(name)

    def _start(self, name: str) -> None:
        if name in self._asking:
            return
        self._asking[name] = self._loop.call_later(TIMEOUT, lambda: self._timed_out(name))
        self._queue.put(name)
        with self._lock:
            if self._threads >= IN_FLIGHT:
                return
            self._threads += 1
        threading.Thread(target=self._work, name="resolver", daemon=True).start()

    def _work(self) -> None:
        """Ask for what is queued, and end."""
        while True:
            with self._lock:
                try:
                    name = self._queue.get_nowait()
                except Empty:
                    self._threads -= 1
                    return
            answers: list[str] = []
            failure = ""
            try:
                answers = self._ask(name)
            except (OSError, UnicodeError) as e:
                failure = (e.strerror if isinstance(e, OSError) else "") or str(e)
            self._loop.post(lambda n=name, a=answers, f=failure: self._answered(n, a, f))  # type: ignore[misc]

    def _answered(self, name: str, answers: list[str], failure: str) -> None:
        self._asking.pop(name).cancel()
        before = self._addresses.get(name, "")
        address = choose(answers, before)
        every = tuple(map(str, sorted(addresses_in(answers), key=_order)))
        self._settle(name, address or before, "" if address else failure or "no address", every)

    def _timed_out(self, name: str) -> None:
        self._settle(name, self._addresses.get(name, ""), "timed out")

    def _settle(self, name: str, address: str, failure: str, every: tuple[str, ...] = ()) -> None:
        if name not in self._wanted:
            return
        others = name in self._pinned and bool(every) and every != self._every.get(name)
        if every:
            self._every[name] = every
        changed = others or address != self._addresses.get(name, "") or failure != self.failures.get(name, "")
        if address:
            self._addresses[name] = address
        if failure:
            self.failures[name] = failure
        else:
            self.failures.pop(name, None)
        if changed:
            self._on_change(name)
