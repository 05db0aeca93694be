"""Flows that keep to what is no longer so: their entries in the kernel's connection tracking are deleted.

The kernel decides about a flow once and remembers. A flow that goes on never notices that it would
be treated otherwise by now. Deleted are, and nothing else:

* what has an address that the WireGuard interface or the tunnel had, and the host has no more;
* what the source of would be translated otherwise by the firewall's rules as they are now, where
  that harms nobody: no connection that was answered, of TCP or its like, which would end;
* TCP that passes between others, where the way to one of them moved into WireGuard or out of it,
  that is to say when the leader changes: the packets that went another way are missing in the
  entry's count of sequence numbers, and the next are "invalid" to it and dropped by many.

Entries of untranslated flows that are picked up again later are not strict about the numbers.
The kernel itself forgets masqueraded flows whose device changes. Nothing is asked while nothing of
this has moved. Runs on the worker's loop, a bit at a time. Called by kilo.netctl.worker.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from kilo.errors import TemporaryError
from kilo.log import Logger
from kilo.model.net import ip_of
from kilo.model.plan import Device
from kilo.netctl.firewall.backend import Readers, member_of
from kilo.netctl.firewall.masquerade import KINDS, Masquerade, Moves, Networks
from kilo.netctl.host import Host, Roles
from kilo.netctl.netlink.attributes import ip_text, pack_ip
from kilo.netctl.netlink.flows import (
    ANSWERED,
    CONNECTIONS,
    DESTINATION_TRANSLATED,
    GET,
    SOURCE_TRANSLATED,
    TCP,
    UDP,
    End,
    Flow,
    Side,
    delete_flow,
    is_zoned,
    list_address,
    list_flows,
    parse_flow,
)
from kilo.netctl.netlink.listing import Listing
from kilo.netctl.netlink.messages import RTM_GETROUTE, pack_lookup, parse_route
from kilo.netctl.netlink.socket import NETLINK_NETFILTER, KernelError, Netlink

COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
"""How many entries this network namespace has."""
_ENDS: tuple[tuple[Side, End], ...] = (
    ("first", "source"),
    ("first", "destination"),
    ("answer", "source"),
    ("answer", "destination"),
)
_ROLES: tuple[Device, ...] = ("wireguard", "tunnel")
_TRANSLATED = SOURCE_TRANSLATED | DESTINATION_TRANSLATED
_NEVER_FORWARDED = Networks(
    member_of(n)[1] for n in ("224.0.0.0/3", "169.254.0.0/16", "ff00::/8", "fe80::/10")
)
_FEW = 5000
"""Entries that are read faster than the kernel goes through its table a second time."""
_PAUSE, _SHARE = 0.5, 10
"""Seconds between two looks, and how many times what a look has cost."""
_DELETE_AT_ONCE = 500
LISTING_TRIES = 5
"""So often is a listing made that the kernel says was interrupted."""

Judge = Callable[[Flow], bool]


class Masquerading(Protocol):
    """What is asked of the firewall: kilo.netctl.firewall.Firewall has it."""

    @property
    def masquerade(self) -> Masquerade: ...

    def take_moves(self) -> Moves: ...


class StaleFlows:
    """``after_pass`` is called at the end of each pass, with the destinations of routes that moved."""

    def __init__(
        self,
        readers: Readers,
        netlink: Netlink,
        host: Host,
        roles: Roles,
        firewall: Masquerading,
        log: Logger,
    ) -> None:
        self.gauges: dict[str, float] = {}
        self.deleted = 0
        self._readers = readers
        self._netlink = netlink
        self._host = host
        self._roles = roles
        self._firewall = firewall
        self._log = log
        self._held: dict[Device, set[str]] = {}
        self._lost: set[str] = set()
        self._moves = Moves()
        self._routes: set[str] = set()
        self._looks: deque[tuple[bytes, Judge]] = deque()
        self._listing: Listing | None = None
        self._interrupted = 0
        """How many listings of the look that is due were interrupted."""
        self._stale: list[Flow] = []
        self._busy = False
        self._closed = False
        self._spent = 0.0
        self._rested = 0.0
        self._told = ""

    def after_pass(self, moved: Iterable[str]) -> None:
        """``moved``: networks to which the way leads by WireGuard since this pass, or no longer does."""
        for role in _ROLES:
            self._look_at(role)
        self._moves.add(self._firewall.take_moves())
        self._routes.update(moved)
        self._start()

    def _start(self) -> None:
        if (self._lost or self._moves or self._routes) and not self._busy:
            self._busy = True
            self._readers.call_later(max(0.0, self._rested - time.monotonic()), self._begin)

    @property
    def looking(self) -> bool:
        """Whether a look is under way, or to come."""
        return self._busy

    def close(self) -> None:
        self._closed = True
        self._end_listing()

    def _look_at(self, role: Device) -> None:
        """What a device has lost. One that is gone may be back in a moment, and have all that it had."""
        number = self._roles.number(role)
        if number:
            addresses = {ip_of(interface) for interface in self._host.addresses.get(number, ())}
            self._lost |= self._held.get(role, set()) - addresses
            self._held[role] = addresses

    def _begin(self) -> None:
        lost, moves, routes = self._lost, self._moves, self._routes
        self._lost, self._moves, self._routes = set(), Moves(), set()
        self._spent = 0.0
        entries = _entries()
        if entries:
            everywhere = {ip_of(i) for held in self._host.addresses.values() for i in held}
            own = {pack_ip(ip)[1] for ip in everywhere}
            for ip in lost - everywhere:
                self._looks += self._for_address(pack_ip(ip)[1])
            if moves:
                self._looks += self._for_moves(moves, own)
            if routes:
                self._looks += self._for_routes([member_of(network) for network in routes], own)
        if 0 < entries < _FEW and self._looks:
            judges = {judge for _, judge in self._looks}
            self._looks = deque([(list_flows(), lambda flow: any(judge(flow) for judge in judges))])
        self._next()

    # What is looked for.

    def _for_address(self, address: bytes) -> list[tuple[bytes, Judge]]:
        def has_it(flow: Flow) -> bool:
            return address in (flow.source, flow.destination, flow.answer_source, flow.answer_destination)

        if len(address) > 4:
            return [(list_flows(6), has_it)]
        return [(list_address(address, side, end), has_it) for side, end in _ENDS]

    def _for_moves(self, moves: Moves, own: set[bytes]) -> list[tuple[bytes, Judge]]:
        masquerade = self._firewall.masquerade
        if not masquerade.asked:
            return []
        sources, towards, known = (Networks(moves.members.get(kind, ())) for kind in KINDS)

        def is_wrong(flow: Flow) -> bool:
            source, destination = flow.source, flow.answer_source
            if flow.answered and (flow.protocol in CONNECTIONS or flow.destination_translated):
                return False
            was_ours = sources.hold(source) or towards.hold(destination)
            if not (moves.whole or was_ours or known.hold(destination)):
                return False
            if source in own or destination in own or _NEVER_FORWARDED.hold(destination):
                return False
            applies = masquerade.applies(source, destination)
            if flow.source_translated:
                return not applies and (was_ours or masquerade.is_ours(source, destination))
            return applies

        versions = {4 if len(m) == 5 else 6 for members in moves.members.values() for m in members}
        looks: list[tuple[bytes, Judge]] = [(list_flows(status=0, mask=ANSWERED), is_wrong)]
        return looks + [
            (list_flows(version, UDP, ANSWERED, ANSWERED), is_wrong)
            for version in ((4, 6) if moves.whole else sorted(versions))
        ]

    def _for_routes(self, moved: list[tuple[int, bytes]], own: set[bytes]) -> list[tuple[bytes, Judge]]:
        networks = Networks(member for _, member in moved)
        ways: dict[bytes, bool] = {}

        def is_elsewhere(address: bytes) -> bool:
            if address not in ways:
                ways[address] = address not in own and self._leads_away(address)
            return ways[address]

        def passes(flow: Flow) -> bool:
            if flow.protocol != TCP or flow.source_translated or flow.destination_translated:
                return False
            if not (networks.hold(flow.source) or networks.hold(flow.destination)):
                return False
            return is_elsewhere(flow.source) and is_elsewhere(flow.destination)

        versions = sorted({version for version, _ in moved})
        return [(list_flows(version, TCP, ANSWERED, ANSWERED | _TRANSLATED), passes) for version in versions]

    def _leads_away(self, address: bytes) -> bool:
        """Whether the way to an address leads to other hosts, not to a pod of this one."""
        try:
            answer = self._netlink.ask(RTM_GETROUTE, pack_lookup(ip_text(address)))
        except TemporaryError:
            return False
        route = parse_route(answer[0]) if answer else None
        return route is not None and route.link in self._roles.numbers()

    # Looking, and deleting.

    def _next(self) -> None:
        if self._closed:
            return
        if not self._looks:
            self._delete()
            return
        began = time.monotonic()
        try:
            self._listing = Listing(NETLINK_NETFILTER, GET, self._looks[0][0])
        except TemporaryError as e:
            self._give_up(e)
            return
        self._spent += time.monotonic() - began
        self._readers.add_reader(self._listing.fileno(), self._readable)

    def _readable(self) -> None:
        if self._listing is None:
            return
        began = time.monotonic()
        judge = self._looks[0][1]
        try:
            messages, done = self._listing.read()
        except TemporaryError as e:
            self._end_listing()
            self._give_up(e)
            return
        for message in messages:
            flow = parse_flow(message)
            if judge(flow) and not is_zoned(flow):
                self._stale.append(flow)
        self._spent += time.monotonic() - began
        if done:
            whole = self._listing.consistent
            self._end_listing()
            self._looked(whole)
            self._readers.call_later(0.0, self._next)

    def _looked(self, whole: bool) -> None:
        """End a look, unless its listing was interrupted: entries may be missing, so it is made again."""
        if not whole:
            self._interrupted += 1
            if self._interrupted < LISTING_TRIES:
                return
            self._warn(TemporaryError("the table of connections changes faster than it can be read"))
        self._looks.popleft()
        self._interrupted = 0

    def _end_listing(self) -> None:
        if self._listing is not None:
            self._readers.remove_reader(self._listing.fileno())
            self._listing.close()
            self._listing = None

    def _delete(self) -> None:
        batch, self._stale = self._stale[:_DELETE_AT_ONCE], self._stale[_DELETE_AT_ONCE:]
        if batch:
            try:
                with contextlib.closing(Netlink(NETLINK_NETFILTER)) as netlink:
                    errors = netlink.change([delete_flow(flow) for flow in batch])
            except TemporaryError as e:
                self._give_up(e)
                return
            self._tell(batch, errors)
        if self._stale:
            self._readers.call_later(0.0, self._next)
        else:
            self._rest()

    def _tell(self, flows: list[Flow], errors: list[KernelError | None]) -> None:
        gone = [flow for flow, error in zip(flows, errors, strict=True) if error is None]
        self.deleted += len(gone)
        self.gauges["flows_deleted_total"] = self.deleted
        if gone:
            examples = [f"{ip_text(flow.source)} to {ip_text(flow.destination)}" for flow in gone[:3]]
            self._log.info("flows may take their new way", count=len(gone), such_as=examples)
        refused = next((e for e in errors if e is not None and e.errno != errno.ENOENT), None)
        if refused is not None:
            self._warn(refused)

    def _give_up(self, error: TemporaryError) -> None:
        """Without connection tracking by netlink flows end by themselves, after a while."""
        self._warn(error)
        self._looks.clear()
        self._stale.clear()
        self._rest()

    def _warn(self, error: TemporaryError) -> None:
        if str(error) != self._told:
            self._told = str(error)
            self._log.warn("flows may keep to their old way", reason=str(error))

    def _rest(self) -> None:
        """Until the next look, for a time that leaves the worker time for other things."""
        self._busy = False
        self._rested = time.monotonic() + max(_PAUSE, _SHARE * self._spent)
        self._start()


def _entries() -> int:
    """How many there are; 0 without connection tracking."""
    try:
        return int(COUNT.read_text())
    except (OSError, ValueError):
        return 0
