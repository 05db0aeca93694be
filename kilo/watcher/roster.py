"""Who takes part in the mesh, kept up to date change by change, and why the others do not.

Holds what is known of every Node and Peer, and writes two tables: the members, which is what the
topic ``cluster`` carries, and the problems. No input and no clock of its own: times come in as
arguments, ``now`` in monotonic seconds, ``wall`` in Unix seconds. Only the watcher's process uses it.

A Node that differs from before in nothing that counts costs one comparison of a few annotations:
most of what a cluster says is check-ins and the status that kubelets report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from kilo.model.node import Endpoint, Node, Peer, Problem
from kilo.watcher.liveness import Liveness
from kilo.watcher.objects import MalformedObject, NodeObject, PeerObject
from kilo.watcher.syntax import integer
from kilo.watcher.translate import (
    LAST_SEEN,
    PREFIX,
    FieldProblem,
    NodeReading,
    PeerReading,
    is_control_plane,
    node_from,
    not_ready_reason,
    peer_from,
    peer_not_ready_reason,
)

LOCAL = "local"
NODE = "node"
PEER = "peer"
IN_DOUBT = (
    "has not changed since this agent started, and is too old to tell whether the node is alive:"
    " it takes part only if this host has its route already, until it has had 60 s to check in"
)
ANNOUNCED_WITHIN = 60.0
"""Seconds that this agent has, from when it first sees its own node, to announce it."""
ANNOUNCED = ("endpoint", "key", "last-seen")
"""The fields of a node that takes part which its own agent writes."""
NOT_ANNOUNCED = f"is not set: this agent has announced nothing in {ANNOUNCED_WITHIN:g} s"
ANNOUNCEMENT_LOST = "is not set, although this agent has announced it: something else has removed it"
V = TypeVar("V", contravariant=True)


class Table(Protocol[V]):
    """Where results go; a bus publisher is one."""

    def put(self, key: str, value: V) -> None: ...

    def remove(self, key: str) -> None: ...


class Names(Protocol):
    """What knows the addresses of names; a Resolver is one."""

    @property
    def failures(self) -> dict[str, str]: ...

    def address(self, name: str) -> str: ...

    def keep(self, names: set[str]) -> None: ...


@dataclass(slots=True)
class _KnownNode:
    relevant: tuple[str, str, str, str, bool, dict[str, str]]
    reading: NodeReading


class Roster:
    """``on_problem(problem, ended)`` is called once for each that arises and once when it has ended."""

    def __init__(
        self,
        own_name: str,
        topology_label: str,
        tables: tuple[Table[Node | Peer], Table[Problem]],
        names: Names,
        on_problem: Callable[[Problem, bool], None],
    ) -> None:
        self.liveness = Liveness()
        self._own_name = own_name
        self._label = topology_label
        self._members, self._problems = tables
        self._names = names
        self._on_problem = on_problem
        self._nodes: dict[str, _KnownNode] = {}
        self._peers: dict[str, PeerReading] = {}
        self._refused: dict[tuple[str, str], FieldProblem] = {}
        self._open: dict[tuple[str, str], dict[str, Problem]] = {}
        self._users: dict[str, set[tuple[str, str]]] = {}
        self._uses: dict[tuple[str, str], str] = {}
        self._ready: dict[str, set[str]] = {NODE: set(), PEER: set()}
        self._own_announced = False
        self._own_due = 0.0
        """Unix s by which the own node must have been announced, 0 until it is seen unannounced."""

    @property
    def counts(self) -> dict[str, int]:
        """How many nodes and peers are known, and how many of them take part."""
        return {
            "nodes": len(self._nodes),
            "ready_nodes": len(self._ready[NODE]),
            "peers": len(self._peers),
            "ready_peers": len(self._ready[PEER]),
        }

    def has_node(self, name: str) -> bool:
        return name in self._nodes

    # What the API says.

    def set_node(self, obj: NodeObject, now: float, wall: float) -> bool:
        """A Node is there. Whether anything that counts is other than before."""
        name = obj.metadata.name
        annotations = obj.annotations
        ours = {k: v for k, v in annotations.items() if k.startswith(PREFIX) and k != LAST_SEEN}
        last_seen, malformed = integer(annotations[LAST_SEEN]) if LAST_SEEN in annotations else (0, "")
        labels = obj.labels
        created = obj.metadata.creation_timestamp or ""
        relevant = (
            created,
            obj.pod_cidr,
            labels.get(self._label, ""),
            malformed,
            is_control_plane(obj),
            ours,
        )
        changed = self.liveness.sight(name, 0 if malformed else last_seen, now, wall)
        known = self._nodes.get(name)
        if known is None or known.relevant != relevant:
            self._nodes[name] = _KnownNode(relevant, node_from(obj, self._label))
        elif not changed and (NODE, name) not in self._refused:
            return False
        self._refused.pop((NODE, name), None)
        self._refresh_node(name, wall)
        return True

    def set_peer(self, obj: PeerObject, wall: float) -> None:
        """A Peer is there."""
        name = obj.metadata.name
        self._refused.pop((PEER, name), None)
        self._peers[name] = peer_from(obj)
        self._refresh_peer(name, wall)

    def refuse(self, kind: str, error: MalformedObject, wall: float) -> None:
        """An object is there and does not decode: it takes no part, whatever it was before."""
        if not error.name:
            return
        self._refused[kind, error.name] = FieldProblem(error.field or "object", error.reason)
        if kind == NODE:
            self._refresh_node(error.name, wall)
        else:
            self._refresh_peer(error.name, wall)

    def remove(self, kind: str, name: str) -> None:
        """An object is gone."""
        self._refused.pop((kind, name), None)
        if kind == NODE:
            self._nodes.pop(name, None)
            self.liveness.forget(name)
            if name == self._own_name:
                self._members.remove(LOCAL)
                self._own_announced, self._own_due = False, 0.0
        else:
            self._peers.pop(name, None)
        self._put(kind, name, None)
        self._set_problems(kind, name, (), 0)

    def gone(self, kind: str, present: Iterable[str]) -> list[str]:
        """The objects of ``kind`` that are known and not among ``present``."""
        known = self._nodes.keys() if kind == NODE else self._peers.keys()
        refused = {name for k, name in self._refused if k == kind}
        return sorted((known | refused) - set(present))

    # What else changes.

    def judge(self, wall: float) -> None:
        """Drop the nodes that have died, mark those that are in doubt. Call it every few seconds."""
        for name in self.liveness.judge():
            if name in self._nodes:
                self._refresh_node(name, wall)
        if self._own_due and wall >= self._own_due and not self._own_announced:
            self._refresh_node(self._own_name, wall)

    def resolved(self, name: str, wall: float) -> None:
        """The address of a DNS name is another than before, or its failure is."""
        for kind, user in sorted(self._users.get(name, ())):
            if kind == NODE:
                self._refresh_node(user, wall)
            else:
                self._refresh_peer(user, wall)

    def forget_names(self) -> None:
        """Stop resolving names that no endpoint has any more."""
        self._names.keep(set(self._users))

    # What comes of it.

    def _refresh_node(self, name: str, wall: float) -> None:
        refused = self._refused.get((NODE, name))
        known = self._nodes.get(name)
        if known is None or refused:
            self._put(NODE, name, None)
            self._set_problems(NODE, name, [refused] if refused else [], wall)
            return
        reading = known.reading
        node, problems = reading.node, [*reading.problems]
        own = name == self._own_name
        doubtful = self.liveness.doubtful(name)
        alive, checked_in = doubtful or self.liveness.alive(name), self.liveness.checked_in(name)
        missing = not_ready_reason(node, alive, reading.problems, checked_in)
        told = self._missing_of_own(missing, reading, wall) if own else missing
        if told and told.field not in dict(problems):
            problems.append(told)
        if doubtful and not missing and not own:
            node = msgspec.structs.replace(node, doubtful=True)
            problems.append(FieldProblem("last-seen", IN_DOUBT))
        if own or not missing:
            field = "force-endpoint" if node.forced_endpoint else "endpoint"
            node, unresolved = self._resolve(NODE, name, node, field)
            problems += unresolved
        self._put(NODE, name, None if missing else node)
        if own:
            self._members.put(LOCAL, node)
        self._set_problems(NODE, name, problems, wall)

    def _missing_of_own(
        self, missing: FieldProblem | None, reading: NodeReading, wall: float
    ) -> FieldProblem | None:
        """The problem of the own node that ``missing`` keeps out of the mesh: None for an agent that has only
        started, since it is about to announce the node."""
        if missing is None:
            self._own_announced = True
        if missing is None or missing.field not in ANNOUNCED or missing in reading.problems:
            return missing
        if self._own_announced:
            is_lost = missing.field != "last-seen" or not self.liveness.checked_in(self._own_name)
            return FieldProblem(missing.field, ANNOUNCEMENT_LOST) if is_lost else missing
        self._own_due = self._own_due or wall + ANNOUNCED_WITHIN
        return FieldProblem(missing.field, NOT_ANNOUNCED) if wall >= self._own_due else None

    def _refresh_peer(self, name: str, wall: float) -> None:
        refused = self._refused.get((PEER, name))
        reading = self._peers.get(name)
        if reading is None or refused or reading.peer is None:
            self._put(PEER, name, None)
            self._set_problems(
                PEER, name, [refused] if refused else reading.problems if reading else [], wall
            )
            return
        peer, unresolved = self._resolve(PEER, name, reading.peer, "spec.endpoint")
        missing = peer_not_ready_reason(peer)
        problems = [*reading.problems, *unresolved, *([missing] if missing else [])]
        self._put(PEER, name, None if missing else peer)
        self._set_problems(PEER, name, problems, wall)

    def _put(self, kind: str, name: str, value: Node | Peer | None) -> None:
        if value is None:
            if name != self._own_name or kind != NODE:
                self._use(kind, name, "")
            self._ready[kind].discard(name)
            self._members.remove(f"{kind}/{name}")
        else:
            self._ready[kind].add(name)
            self._members.put(f"{kind}/{name}", value)

    def _resolve(
        self, kind: str, name: str, value: NodeOrPeer, field: str
    ) -> tuple[NodeOrPeer, list[FieldProblem]]:
        """``value`` with its endpoint resolved, and what stands in the way of that."""
        where = value.endpoint
        host = where.host if where and where.ip != where.host else ""
        self._use(kind, name, host)
        if where is None or not host:
            return value, []
        address = self._names.address(host)
        endpoint = Endpoint(host, where.port, address)
        failure = self._names.failures.get(host)
        problems = []
        if failure:
            meanwhile = (
                f"its last address, {address}, is used" if address else "it has no endpoint until then"
            )
            problems.append(FieldProblem(field, f"{host!r} does not resolve: {failure}; {meanwhile}"))
        return msgspec.structs.replace(value, endpoint=endpoint), problems

    def _use(self, kind: str, name: str, host: str) -> None:
        """Remember that this object's endpoint is ``host``, "" for none that must be resolved."""
        user = (kind, name)
        old = self._uses.get(user, "")
        if old == host:
            return
        if old:
            del self._uses[user]
            self._users[old].discard(user)
            if not self._users[old]:
                del self._users[old]
        if host:
            self._uses[user] = host
            self._users.setdefault(host, set()).add(user)

    def _set_problems(self, kind: str, name: str, problems: Iterable[FieldProblem], wall: float) -> None:
        """These are all the problems that this object has."""
        before = self._open.get((kind, name), {})
        after: dict[str, Problem] = {}
        for field, reason in problems:
            old = before.get(field)
            if field in after:
                continue
            if old and old.reason == reason:
                after[field] = old
            else:
                since = old.since if old else int(wall)
                if field == "last-seen":  # so that the age of the last check-in is shown
                    since = self.liveness.checked_in(name) or since
                after[field] = Problem(kind, name, field, reason, since)
        for field, problem in before.items():
            if field not in after:
                self._problems.remove(f"{kind}/{name}/{field}")
                self._on_problem(problem, True)
        for field, problem in after.items():
            if problem is not before.get(field):
                self._problems.put(f"{kind}/{name}/{field}", problem)
                self._on_problem(problem, False)
        if after:
            self._open[kind, name] = after
        else:
            self._open.pop((kind, name), None)


NodeOrPeer = TypeVar("NodeOrPeer", Node, Peer)
