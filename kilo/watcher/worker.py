"""The watcher's process: the API on one side, the bus on the other.

Three threads do the requests (one reader a resource, and the announcer) and post what they find to
the loop, where everything below runs. May not touch the kernel, and never sees the private key.
"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from kilo.bus import ANNOUNCE, CLUSTER, PROBLEMS, Change
from kilo.errors import ProtocolError, TemporaryError
from kilo.model.net import parse_ip
from kilo.model.node import Announcement, ApiServer, Problem
from kilo.watcher.announcer import Announcer, Overwritten, Patched, PatchFailed, Report
from kilo.watcher.client import Api, ApiError
from kilo.watcher.liveness import READING, WRITING
from kilo.watcher.objects import MalformedObject, NodeObject, PeerObject
from kilo.watcher.resolver import Resolver
from kilo.watcher.roster import NODE, PEER, Roster
from kilo.watcher.stream import (
    NODES,
    PEERS,
    Changed,
    Emission,
    Failed,
    Listed,
    Listing,
    Missing,
    Reader,
)
from kilo.worker import Context

JUDGE_EVERY = 5.0
ECHO_WITHIN = 20.0
"""s; so soon must the watch of nodes bring what we wrote ourselves, or it is dead without knowing."""
HOLD_FOR_NAMES = 1.0
"""s that the first publication waits for names to resolve."""
NOT_DEFINED = (
    "there is no CustomResourceDefinition peers.kilo.squat.ai: going on without Peers until there is"
)
ANNOUNCE_KEY = "announce"
CHECK_IN_WITHIN = 45.0
"""s without a check-in, of which there is one every 30 s, until that is said whatever the reason."""
UNREACHABLE_AFTER = 10.0
"""s that the API must be away until the others are told: a watch that is made anew is no outage."""


class WatcherWorker:
    """See the module. Raises PermanentError if there is no usable configuration of the API."""

    def __init__(self, context: Context) -> None:
        config, loop = context.config, context.loop
        self._context = context
        self._log = context.log
        self._report = context.report
        self._name = config.hostname
        self._clean_up = config.clean_up
        self._cluster = context.publish(CLUSTER)
        self._problems = context.publish(PROBLEMS)
        self._resolver = Resolver(loop, config.resync_period, self._on_resolved)
        tables = (self._cluster, self._problems)
        self._roster = Roster(self._name, config.topology_label, tables, self._resolver, self._on_problem)
        self._liveness = self._roster.liveness
        self._api = Api(
            config.kubeconfig, config.master, lambda why: loop.post(lambda: self._on_credentials(why))
        )
        self._announcer = Announcer(self._api, self._name, lambda r: loop.post(lambda: self._on_report(r)))
        self._nodes = Reader(self._api, NODES, lambda e: loop.post(lambda: self._on_nodes(e)))
        self._peers = Reader(self._api, PEERS, lambda e: loop.post(lambda: self._on_peers(e)))
        self._states = {"nodes": "starting", "peers": "starting"}
        self._listed: set[str] = set()
        self._hold_until = 0.0
        self._flush_due = False
        self._no_definition = False
        self._own_version = ""
        self._echo: tuple[str, float] | None = None
        self._away_since: float | None = None
        self._checked_in = 0.0

    def start(self) -> None:
        self._report.info["server"] = self._api.server
        if not self._api.verified:
            self._log.warn("the API server's certificate is not verified", server=self._api.server)
        self._context.subscribe(ANNOUNCE, self._on_announce)
        self._api_server(time.monotonic())  # so that its name resolves while the cluster is read
        self._nodes.start()
        self._peers.start()
        self._announcer.start()
        loop = self._context.loop
        loop.call_every(JUDGE_EVERY, self._judge)
        loop.call_every(self._context.config.resync_period, self._roster.forget_names)

    def stop(self, clean_up: bool) -> None:
        """With ``clean_up`` and the flag, our annotations are taken away, within 5 s.

        Raises TemporaryError if they are not.
        """
        self._nodes.stop()
        self._peers.stop()
        remove = clean_up and self._clean_up
        if failure := self._announcer.close(remove):
            self._api.close()
            raise TemporaryError(f"the node's annotations were not removed: {failure}")
        if remove:
            self._log.info("the node's annotations are removed")
        self._api.close()

    # From the readers.

    def _on_nodes(self, event: Emission[NodeObject]) -> None:
        now, wall = time.monotonic(), time.time()
        match event:
            case Changed(items):
                self._liveness.contact(now)
                self._echo = None
                changed = False
                for item in items:
                    changed |= self._on_node(item, now, wall)
                self._reading("nodes", "watching", changed)
            case Listed(items, refused):
                self._liveness.contact(now)
                nodes: list[NodeObject | MalformedObject] = [*items, *refused]
                for node in nodes:
                    self._on_node(node, now, wall)
                present = {i.metadata.name for i in items} | {r.name for r in refused}
                for name in self._roster.gone(NODE, present):
                    self._on_node(name, now, wall)
                self._check_own_node()
                self._reading("nodes", "watching", True)
            case Failed():
                self._liveness.lost(READING)
                self._failed("nodes", event)
            case Listing():
                self._listing("nodes")

    def _on_node(self, item: NodeObject | MalformedObject | str, now: float, wall: float) -> bool:
        """Whether the roster changed."""
        if isinstance(item, NodeObject):
            if item.metadata.name == self._name:
                self._own_version = item.metadata.resource_version
                self._announcer.observe(item)
                self._report.mend("node")
            return self._roster.set_node(item, now, wall)
        if isinstance(item, MalformedObject):
            self._refuse(NODE, item, wall)
        else:
            self._roster.remove(NODE, item)
            if item == self._name:
                self._announcer.forget()
                self._check_own_node()
        return True

    def _check_own_node(self) -> None:
        if not self._roster.has_node(self._name):
            self._report.fail("node", f"there is no Node named {self._name}: is --hostname right?", "node")

    def _on_peers(self, event: Emission[PeerObject]) -> None:
        wall = time.time()
        match event:
            case Changed(items):
                for item in items:
                    self._on_peer(item, wall)
                self._reading("peers", "watching", bool(items))
            case Listed(items, refused):
                peers: list[PeerObject | MalformedObject] = [*items, *refused]
                for peer in peers:
                    self._on_peer(peer, wall)
                self._only_peers({i.metadata.name for i in items} | {r.name for r in refused})
                self._no_definition = False
                self._report.mend("peers")
                self._reading("peers", "watching", True)
            case Missing():
                if not self._no_definition:
                    self._report.fail("peers", NOT_DEFINED, "crd")
                    self._only_peers(set())
                self._reading("peers", "not defined", not self._no_definition)
                self._no_definition = True
            case Failed():
                self._failed("peers", event)
            case Listing():
                self._listing("peers")

    def _on_peer(self, item: PeerObject | MalformedObject | str, wall: float) -> None:
        if isinstance(item, PeerObject):
            self._roster.set_peer(item, wall)
        elif isinstance(item, MalformedObject):
            self._refuse(PEER, item, wall)
        else:
            self._roster.remove(PEER, item)

    def _refuse(self, kind: str, item: MalformedObject, wall: float) -> None:
        self._report.count("object")
        if not item.name:  # so there is nothing that a problem could be kept under
            self._log.warn("an object without a name is left out", kind=kind, reason=str(item))
        self._roster.refuse(kind, item, wall)

    def _only_peers(self, present: set[str]) -> None:
        for name in self._roster.gone(PEER, present):
            self._roster.remove(PEER, name)

    def _reading(self, resource: str, state: str, changed: bool) -> None:
        """``resource`` has been read; publish if that changed anything."""
        if self._states[resource] != state:
            self._states[resource] = state
            self._report.mend(f"api {resource}")
            self._tell()
        if changed:
            self._listed.add(resource)
            self._flush_soon()

    def _listing(self, resource: str) -> None:
        if self._states[resource] in ("starting", "watching"):
            self._states[resource] = "listing"

    def _failed(self, resource: str, event: Failed) -> None:
        self._report.fail(f"api {resource}", event.error.account, "api")
        self._count_cause(event.error)
        if not self._states[resource].startswith("unreachable"):
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._states[resource] = f"unreachable since {since}"
            self._tell()

    # From the announcer, the resolver and mesh.

    def _on_announce(self, change: Change[Announcement]) -> None:
        if announcement := change.upserts.get(ANNOUNCE_KEY):
            self._checked_in = self._checked_in or time.monotonic()
            self._announcer.announce(announcement)

    def _on_report(self, report: Report) -> None:
        now = time.monotonic()
        match report:
            case Patched(version):
                self._checked_in = now
                self._liveness.wrote(now)
                self._report.mend("check-in")
                if version != self._own_version:
                    self._echo = (version, now)
            case PatchFailed(error):
                if not 400 <= error.status < 429:
                    self._liveness.lost(WRITING)
                self._report.fail("check-in", error.account, "checkin")
                self._count_cause(error)
            case Overwritten(()):
                self._report.mend("annotations")
            case Overwritten(names):
                message = f"somebody else keeps overwriting {', '.join(names)} of our node: a second agent?"
                self._report.fail("annotations", message, "overwritten")

    def _count_cause(self, error: ApiError) -> None:
        """Count what a failure is due to, where that is known, beside the request that failed."""
        if error.event:
            self._report.count(error.event)

    def _on_credentials(self, failure: str) -> None:
        if failure:
            self._report.fail("credentials", failure, "credentials")
        else:
            self._report.mend("credentials")
            self._report.info["server"] = self._api.server

    def _on_resolved(self, name: str) -> None:
        if name in self._resolver.failures:
            self._report.count("dns")
        self._roster.resolved(name, time.time())
        self._flush_soon()

    def _on_problem(self, problem: Problem, ended: bool) -> None:
        who = {"kind": problem.kind, "name": problem.name, "field": problem.field}
        if ended:
            self._log.info("problem ended", **who)
        else:
            if problem.field == "last-seen" and (age := int(time.time()) - problem.since) > 0:
                who["age"] = f"{age} s"
            self._log.warn("takes no part in the mesh, or only in part", **who, reason=problem.reason)

    # From time.

    def _judge(self) -> None:
        now = time.monotonic()
        self._away_since = (self._away_since or now) if self._liveness.away else None
        if self._checked_in and now - self._checked_in > CHECK_IN_WITHIN:
            self._miss_check_in()
        self._roster.judge(time.time())
        self._flush_soon()
        if self._echo and time.monotonic() - self._echo[1] > ECHO_WITHIN:
            self._echo = None
            self._log.warn("the watch of nodes does not bring what was written; watching anew")
            self._report.count("api")
            self._liveness.lost(READING)
            self._nodes.reconnect()

    def _miss_check_in(self) -> None:
        """Say so where the thread that checks in does not: it may hang in a request, or be dead."""
        if "check-in" in self._report.failing:
            return
        credentials = self._report.failing.get("credentials")
        why = "the request does not come back" if self._announcer.running else "the thread that makes it died"
        if credentials is not None:
            why = f"credentials: {credentials.message}"
        self._report.fail("check-in", f"no check-in for more than {CHECK_IN_WITHIN:g} s: {why}", "checkin")

    # To the bus.

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._context.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if "nodes" not in self._listed:
            return
        self._problems.flush()
        if "peers" not in self._listed:
            return
        now = time.monotonic()
        self._hold_until = self._hold_until or now + HOLD_FOR_NAMES
        if self._report.phase == "starting" and self._resolver.pending and now < self._hold_until:
            self._context.loop.call_later(self._hold_until - now, self._flush_soon)
            return
        self._cluster.put(ApiServer.KEY, self._api_server(now))
        self._cluster.flush()
        self._tell()
        self._report.ready()

    def _api_server(self, now: float) -> ApiServer:
        host = urlsplit(self._api.server).hostname or ""
        addresses: tuple[str, ...]
        try:
            addresses = (str(parse_ip(host)),)
        except ProtocolError:
            addresses = self._resolver.pin(host)
        away = self._away_since
        return ApiServer(addresses, away is None or now - away < UNREACHABLE_AFTER)

    def _tell(self) -> None:
        self._report.info["api"] = ", ".join(f"{k}: {v}" for k, v in self._states.items())
        counts = self._roster.counts
        self._report.gauges.update({f"api_{k}": float(v) for k, v in counts.items()})
        self._report.gauges["problems"] = float(len(self._problems.state))
