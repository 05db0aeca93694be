"""The firewall by nf_tables: a table of our own for each IP version, and rules where others may drop.

What differs in our own table of one IP version is done in one transaction. A second one puts the
host's tables right, in which the Go agent's rules leave as ours come. It waits until the first is
done: for a moment after a transaction some packets still miss what is new, and not what is gone.
Before it the ipsets are filled into which our rules in the host's chains look; nft_layout says why
there are any.
Works for the network namespace of the thread that it is first called on. Called by
kilo.netctl.firewall.selected.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain as chained
from typing import Literal

from kilo.errors import KiloError, TemporaryError
from kilo.log import Logger
from kilo.model.plan import FirewallSet
from kilo.netctl.firewall import xtables
from kilo.netctl.firewall.access import KERNEL, Access
from kilo.netctl.firewall.attempts import Attempts, persistently
from kilo.netctl.firewall.backend import Desired, Readers, SetId
from kilo.netctl.firewall.ipset import Ipset
from kilo.netctl.firewall.layout import SET_REVISION
from kilo.netctl.firewall.nft_edits import (
    OWN,
    PARTS,
    Look,
    Part,
    Work,
    held,
    put_host_right,
    put_right,
    table_key,
    thin_out,
)
from kilo.netctl.firewall.nft_events import FIGHT, NftEvents
from kilo.netctl.firewall.nft_ipsets import HostSets
from kilo.netctl.firewall.nft_layout import (
    HOST_SETS,
    HostRules,
    OwnTable,
    host_rules,
    own_table,
    wanted_in_host,
)
from kilo.netctl.firewall.nft_socket import ABSENT, NftSocket, Refused, is_absence
from kilo.netctl.firewall.nft_state import Found, HostChain, read
from kilo.netctl.reconcile import Outcome

_MATTERS: tuple[FirewallSet, ...] = ("masquerade_from", "masquerade_to", "ipip_accept_from")
"""With no member in any of these, our table does nothing to the traffic of the mesh."""
_OWN_PART: tuple[Part, ...] = (OWN,)
_HOST_PARTS: tuple[Part, ...] = ("filter", "nat")
Step = Literal["apply", "prune"]
Target = Literal["own", "host"]
_STEPS: tuple[Step, ...] = ("apply", "prune")
_OWN: Target = "own"
_HOST: Target = "host"


class NoNftables(TemporaryError):
    """The kernel has no nf_tables, and could not load it."""


class NftBackend:
    """See kilo.netctl.firewall.backend.Backend."""

    told = "nftables"

    def __init__(
        self,
        log: Logger,
        new_ipset: Callable[[], Ipset] = Ipset,
        clock: Callable[[], float] = time.monotonic,
        remover: bool = False,
        access: Access = KERNEL,
    ) -> None:
        """A ``remover`` is for ``clean_up`` alone, and does not ask what the kernel could do."""
        self._log = log
        self._access = access
        self._attempts = Attempts(clock)
        self._netlink: NftSocket | None = None
        self._events = NftEvents(lambda: self._netlink.port if self._netlink else 0, clock)
        self._sets = HostSets(log, new_ipset, None if remover else self._has_set_match, self._attempts)
        self._versions: tuple[int, ...] = ()
        self._absent = False
        self._found: dict[int, Found] = {}
        self._generation: int | None = None
        """The kernel's number for the state that ``_found`` is; None: it may have moved on."""
        self._doubtful: set[int] = set()
        """IP versions of which ``_found`` may be wrong."""
        self._unseen: set[tuple[Step, Target]] = set()
        """Which steps have not compared what was read last, of our own and of the host's."""

    def watch(self, readers: Readers, on_drift: Callable[[], None]) -> None:
        self._events.watch(readers, on_drift)

    def close(self) -> None:
        self._events.close()
        if self._netlink is not None:
            self._netlink.close()
        self._netlink, self._generation = None, None

    def settled(self) -> bool:
        return not self._unseen and not self._attempts.failing

    def failures(self) -> set[str]:
        return self._attempts.failures

    # Reading.

    def load(self) -> None:
        self._load()
        if self._sets.any or any(chained(*map(self._host_chains, self._versions))):
            self._sets.load()
            self._look_at(_HOST)

    def _look_at(self, *targets: Target) -> None:
        self._unseen.update((step, target) for step in _STEPS for target in targets)

    def _seen(self, step: Step) -> None:
        self._unseen -= {(step, _OWN), (step, _HOST)}

    def _load(self) -> None:
        """Where nobody has changed anything since, what is known stands."""
        try:
            netlink = self._socket()
            generation = netlink.generation()
        except TemporaryError as e:
            if is_absence(e):
                raise NoNftables("the kernel has no nftables (module nf_tables)") from e
            raise
        if generation == self._generation:
            return
        self._look_at(_OWN, _HOST)
        self._generation = None
        self._versions = (4, 6) if xtables.has_family(6) else (4,)
        self._found = {version: read(netlink, version) for version in self._versions}
        self._doubtful.clear()
        if netlink.generation() == generation:
            self._generation = generation

    def _socket(self) -> NftSocket:
        if self._netlink is None:
            self._netlink = self._access.nft()
        return self._netlink

    def _has_set_match(self) -> bool:
        return self._socket().has_match(4, "set", SET_REVISION)

    def _host_chains(self, version: int) -> list[str]:
        """The host's chains, in its table filter, in which we may have rules."""
        return [
            chain for table, chain in self._found[version].host if table == "filter" and chain in HOST_SETS
        ]

    # Writing.

    def apply(self, desired: Desired) -> list[Outcome]:
        self._attempts.begin()
        for version in self._versions:
            if version == 4 or not self._absent or _matters(version, desired):
                ready = self._sets.fill(self._host_set_ids(version, desired), desired)
                self._run(version, desired, _OWN_PART, partial(self._missing, version, desired))
                if self._attempts.fails(table_key(OWN, version)):
                    for part in _HOST_PARTS:
                        self._attempts.hold(table_key(part, version))
                else:
                    works_of = partial(self._missing_in_host, version, desired, ready)
                    self._run(version, desired, _HOST_PARTS, works_of)
                self._tell_held(version)
        self._tell_fight()
        self._seen("apply")
        return self._attempts.take()

    def prune(self, desired: Desired) -> list[Outcome]:
        for version in reversed(self._versions):
            if self._attempts.fails(table_key(OWN, version)):
                self._attempts.hold(table_key(OWN, version) + "/surplus")
            else:
                works_of = partial(self._surplus, version, desired)
                self._run(version, desired, _OWN_PART, works_of, "/surplus")
        set_ids = [set_id for v in self._versions for set_id in self._host_set_ids(v, desired)]
        self._sets.thin_out(set_ids, desired)
        self._attempts.end()
        self._seen("prune")
        return self._attempts.take()

    def clean_up(self, patience: float = 0.0) -> list[Outcome]:
        return persistently(self._remove_all)

    def _remove_all(self) -> list[Outcome]:
        nothing = Desired()
        self._attempts.reset()
        self._generation = None
        try:
            self._load()
            self._sets.load()
        except NoNftables:
            return []
        except KiloError as e:
            return [Outcome("firewall", f"firewall: {e}")]
        outcomes = self.apply(nothing) + self.prune(nothing)
        self._generation = None  # what is there is not what the plan wants, if it still wants something
        return outcomes

    def _host_set_ids(self, version: int, desired: Desired) -> list[SetId]:
        chains = [chain for chain in self._host_chains(version) if wanted_in_host(desired.policy, chain)]
        return [(kind, version) for chain in chains for kind in HOST_SETS[chain]]

    def _members(self, version: int, desired: Desired, step: Step) -> dict[FirewallSet, Look]:
        """What our table's sets shall hold, of those that this step has to look at."""
        found = self._found[version]
        everything = not self._is_still(desired, (), (step, _OWN)) or not (found.table and found.sound)
        looks = {}
        for kind in _own(version, desired).sets:
            set_id = (kind, version)
            if everything:
                looks[kind] = Look(desired.outer(set_id))
            elif set_id in desired.moved:
                looks[kind] = Look(desired.outer(set_id), desired.outer_moved(set_id))
        return looks

    def _is_still(self, desired: Desired, causes: Iterable[SetId | str], of: tuple[Step, Target]) -> bool:
        """Whether what depends on ``causes``, and on the policy, is as it was when it matched."""
        known = of not in self._unseen and not self._attempts.failing
        return known and desired.moved.isdisjoint({"policy", *causes})

    def _missing(self, version: int, desired: Desired) -> list[Work]:
        """The work of ``apply`` in our own table."""
        members = self._members(version, desired, "apply")
        if not members and desired.policy:
            return []
        return put_right(version, self._found[version], _own(version, desired), members)

    def _missing_in_host(self, version: int, desired: Desired, ready: bool) -> list[Work]:
        """The work of ``apply`` in the host's tables. ``ready``: rules may look into the ipsets."""
        wanted: dict[HostChain, HostRules] = {}
        causes: set[SetId | str] = set()
        set_ids = self._host_set_ids(version, desired)
        if not self._sets.usable:
            causes.update(set_ids)
        if self._is_still(desired, causes, ("apply", _HOST)):
            return []
        if ready:
            select = self._sets.selector(version, [kind for kind, _ in set_ids], desired)
            for name in self._host_chains(version):
                wanted["filter", name] = host_rules(desired.policy, name, select)
        else:
            self._attempts.hold(table_key("filter", version))
        works = put_host_right(version, self._found[version], wanted, ("policy", *causes))
        return [work for work in works if ready or work.part != "filter"]

    def _surplus(self, version: int, desired: Desired) -> list[Work]:
        """The work of ``prune``."""
        members = self._members(version, desired, "prune")
        return thin_out(version, self._found[version], _own(version, desired), members)

    # Transactions.

    def _run(
        self,
        version: int,
        desired: Desired,
        parts: tuple[Part, ...],
        works_of: Callable[[], list[Work]],
        suffix: str = "",
    ) -> None:
        """Do what is due of ``parts``, in one transaction if the kernel accepts all of it.

        After a refusal all is read anew, once: others may have changed what was known.
        """
        works: list[Work] = []
        fresh = version in self._doubtful
        try:
            if fresh:
                self._read_anew(version)
            works = self._due(version, parts, works_of(), suffix)
            while works:
                refused = self._commit(works)
                if refused is None:
                    self._worked(version, desired, works)
                    return
                if fresh:
                    works = self._without_culprit(version, desired, works, refused, suffix)
                else:
                    fresh = True
                    self._read_anew(version)
                    works = self._due(version, parts, works_of(), suffix)
        except TemporaryError as e:  # the answer was lost, or could not be understood
            self._doubtful.add(version)
            self._attempts.failed(table_key(parts[0], version) + suffix, str(e), repair=False)

    def _read_anew(self, version: int) -> None:
        self._found[version] = read(self._socket(), version)
        self._doubtful.discard(version)

    def _without_culprit(
        self, version: int, desired: Desired, works: list[Work], refused: Refused, suffix: str
    ) -> list[Work]:
        """What can be tried without that part whose request was refused."""
        culprit = _culprit(works, refused)
        key = table_key(culprit.part, version) + suffix
        if culprit.part == OWN and self._is_absent(version, desired, refused):
            self._attempts.unneeded(key)
            return []
        repair = desired.moved.isdisjoint(culprit.causes)
        self._attempts.failed(key, f"{culprit.key}: {refused.error}", repair)
        return [work for work in works if work.part != culprit.part]

    def _due(self, version: int, parts: tuple[Part, ...], works: list[Work], suffix: str) -> list[Work]:
        """Those that may be tried."""
        due: set[Part] = set()
        for part in parts:
            key = table_key(part, version) + suffix
            if all(work.part != part for work in works):
                if part == OWN or not held(self._found[version], part):
                    self._attempts.unneeded(key)
            elif self._attempts.due(key):
                due.add(part)
        return [work for work in works if work.part in due]

    def _commit(self, works: Iterable[Work]) -> Refused | None:
        """If nobody else had a transaction since we read, what we know stands."""
        netlink = self._socket()
        refused = netlink.commit([request for work in works for request in work.requests])
        if refused is None and self._generation is not None:
            generation = netlink.generation()
            self._generation = generation if generation == self._generation + 1 else None
        return refused

    def _worked(self, version: int, desired: Desired, works: list[Work]) -> None:
        found = self._found[version]
        for kind, change in (work.members for work in works if work.members):
            members = found.sets.setdefault(kind, set())
            members -= change.gone
            members |= change.new
        repairs = {work.key: desired.moved.isdisjoint(work.causes) for work in works}
        for key, repair in repairs.items():
            self._attempts.worked(key, repair)
        if any(repairs.values()):
            self._events.repaired()
        if any(work.members is None for work in works):
            self._found[version] = read(self._socket(), version, found.sets)

    def _is_absent(self, version: int, desired: Desired, refused: Refused) -> bool:
        """Whether the kernel lacks nf_tables for IPv6, and nobody in the mesh needs it."""
        number = getattr(refused.error, "errno", 0)
        if version == 4 or _matters(version, desired) or number not in (*ABSENT, errno.ENOENT):
            return False
        if not self._absent:
            self._log.info("no nftables for IPv6, where there is nothing to do", reason=str(refused.error))
        self._absent = True
        return True

    def _tell_held(self, version: int) -> None:
        for part in PARTS:
            chains, key = held(self._found[version], part), table_key(part, version)
            if chains and self._attempts.due(key):
                reason = f"rules of others still jump to {', '.join(chains)}, now empty"
                self._attempts.failed(key, reason, repair=False)

    def _tell_fight(self) -> None:
        key = "nftables/fight"
        if self._events.repairs < FIGHT:
            self._attempts.unneeded(key)
        elif self._attempts.due(key):
            reason = f"somebody undoes what we do, {FIGHT} times within a minute; looking less often"
            self._attempts.failed(key, reason, repair=False)


def _own(version: int, desired: Desired) -> OwnTable:
    return own_table(version, desired.policy, desired.devices)


def _matters(version: int, desired: Desired) -> bool:
    return any(desired.members((kind, version)) for kind in _MATTERS)


def _culprit(works: list[Work], refused: Refused) -> Work:
    """The work whose request was refused; the first, if it was the whole."""
    position = refused.position
    for work in works:
        if position < len(work.requests):
            return work
        position -= len(work.requests)
    return works[0]
