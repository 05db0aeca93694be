"""The watcher in a process of its own, between an API server and a real bus."""

from __future__ import annotations

import base64
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from kilo.bus import ANNOUNCE, CLUSTER, PROBLEMS, Change, Subscription, Topic
from kilo.config import Config
from kilo.model.host import WorkerState
from kilo.model.node import Announcement, ClusterItem, Endpoint, Node, Peer, Problem
from kilo.model.node import ApiServer as ApiEntry
from kilo.watcher.roster import LOCAL
from kilo.watcher.worker import WatcherWorker
from kilo.worker import Context
from tests.apiserver import CRDS_FILE, Admin, ApiServer, Standin
from tests.apiserver import store as kinds
from tests.clock import bound
from tests.feeding import QUICK, Bus, Running, eventually, running
from tests.integration.watcher.impatient import soon_away, with_slow_names
from tests.unit.watcher.oddserver import OddServer, whole

LABEL = "topology.kubernetes.io/region"


def key(number: int) -> str:
    return base64.b64encode(number.to_bytes(32, "big")).decode()


HELLO = Announcement(
    endpoint=Endpoint("203.0.113.250", 51820, "203.0.113.250"), key=key(250), granularity="full"
)


def participant(number: int, **changes: str) -> dict[str, str]:
    """Those of a node that takes part."""
    values = {
        "endpoint": f"203.0.113.{number}:51820",
        "internal-ip": f"10.0.0.{number}/24",
        "key": key(number),
        "last-seen": str(int(time.time())),
    }
    return {**values, **{k.replace("_", "-"): v for k, v in changes.items()}}


def add(admin: Admin, name: str, number: int, **changes: str) -> None:
    admin.create_node(name, participant(number, **changes), f"10.2.{number}.0/24", {LABEL: "eu"})


class Topics:
    """What the watcher has said on one topic, and how often."""

    def __init__(self, bus: Bus, topic: Topic[Any]) -> None:
        self.messages = 0
        self.first: Change[Any] | None = None
        self._subscription: Subscription[Any]

        def subscribe() -> None:
            self._subscription = Subscription(bus.loop, str(bus.run_dir), topic, self._changed)

        bus.on_loop(subscribe)

    def _changed(self, change: Change[Any]) -> None:
        self.messages += 1
        self.first = self.first or change

    @property
    def published(self) -> bool:
        return self._subscription.complete

    @property
    def state(self) -> dict[str, Any]:
        return dict(self._subscription.state)

    @property
    def position(self) -> int:
        """The number of the newest message: grows with each, whatever is in it."""
        return self._subscription._seq


class Watcher:
    """One watcher for node ``own`` and those it talks to."""

    def __init__(self, bus: Bus, process: Running) -> None:
        self.bus = bus
        self.process = process
        self.cluster = Topics(bus, CLUSTER)
        self.problems = Topics(bus, PROBLEMS)

    def has(self, *keys: str) -> None:
        """Wait until exactly these are published, beside the API server's own entry."""
        eventually(
            lambda: self.cluster.published and set(self.cluster.state) == {*keys, ApiEntry.KEY},
            what=f"{sorted(keys)}, there is {sorted(self.cluster.state)}, {self.process.log}",
        )

    def state(self) -> WorkerState:
        return eventually(lambda: self.bus.state("watcher"))

    def failures(self) -> dict[str, str]:
        """What does not work now, by key, as the log has it: sooner than the next heartbeat."""
        now: dict[str, str] = {}
        for line in self.process.log:
            if line["level"] == "error" and "failing" in line:
                now[line["failing"]] = line["msg"]
            elif "failing" in line:
                now.pop(line["failing"], None)
        return now

    def failing(self, name: str, text: str) -> None:
        eventually(lambda: text in self.failures().get(name, ""), what=f"{name}: {text}; {self.process.log}")

    def works(self) -> None:
        eventually(lambda: not self.failures(), what=f"nothing failing; {self.process.log}")

    def announce(self, announcement: Announcement = HELLO) -> None:
        self.bus.put(ANNOUNCE, announce=announcement)


Start = Callable[..., Watcher]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Watcher]]:
    with ExitStack() as stack:
        bus = Bus(tmp_path / "run")
        stack.callback(bus.close)

        def make(
            api: ApiServer, factory: Callable[[Context], WatcherWorker] = WatcherWorker, **options: Any
        ) -> Watcher:
            kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
            config = Config(
                **{"run_dir": str(bus.run_dir), "kubeconfig": kubeconfig, "hostname": "own", **options}
            )
            process = stack.enter_context(running("watcher", factory, config, QUICK))
            stack.callback(process.end, signal.SIGHUP)
            return Watcher(bus, process)

        yield make


@pytest.fixture
def admin(server: ApiServer) -> Iterator[Admin]:
    with closing(server.admin()) as admin:
        yield admin


@pytest.fixture
def start(make: Start, server: ApiServer) -> Start:
    """With whichever server: a real one where it is installed, else a stand-in."""
    return lambda **options: make(server, **options)


@pytest.fixture
def faulty(make: Start, standin: Standin) -> Start:
    """With a stand-in that the test torments."""
    return lambda **options: make(standin, **options)


@pytest.fixture
def editor(standin: Standin) -> Iterator[Admin]:
    with closing(standin.admin()) as admin:
        yield admin


# With whichever server.


def created_now(item: ClusterItem) -> int:
    """When the object was made, as the server says: just now."""
    assert isinstance(item, Node | Peer)
    assert abs(time.time() - item.created) < 60
    return item.created


def test_a_cluster_is_read_translated_and_published(start: Start, admin: Admin) -> None:
    add(admin, "own", 1)
    add(admin, "n2", 2, location="us", leader="", persistent_keepalive="10")
    admin.create_node("bare")
    admin.create_peer("p", publicKey=key(9), allowedIPs=["10.5.0.1/32"])
    watcher = start()
    watcher.has(LOCAL, "node/own", "node/n2", "peer/p")
    state = watcher.cluster.state
    assert state["node/n2"] == Node(
        name="n2",
        key=key(2),
        endpoint=Endpoint("203.0.113.2", 51820, "203.0.113.2"),
        internal_ip="10.0.0.2/24",
        leader=True,
        location="us",
        persistent_keepalive=10,
        subnet="10.2.2.0/24",
        created=created_now(state["node/n2"]),
    )
    assert state[LOCAL] == state["node/own"]
    assert state["node/own"].location == "eu"
    peer = Peer("p", key(9), ("10.5.0.1/32",), created=created_now(state["peer/p"]))
    assert state["peer/p"] == peer
    problems = eventually(lambda: watcher.problems.state)
    assert {p.name for p in problems.values()} == {"bare"}
    assert all(isinstance(p, Problem) and p.reason and p.since for p in problems.values())
    eventually(lambda: watcher.state().phase == "ready")
    assert watcher.state().info["api"] == "nodes: watching, peers: watching"
    eventually(lambda: watcher.state().gauges.get("api_ready_nodes") == 2)


def test_changes_arrive(start: Start, admin: Admin) -> None:
    add(admin, "own", 1)
    watcher = start()
    watcher.has(LOCAL, "node/own")
    add(admin, "n2", 2)
    admin.create_peer("p", publicKey=key(9), allowedIPs=["10.5.0.1/32"])
    watcher.has(LOCAL, "node/own", "node/n2", "peer/p")
    admin.annotate("n2", location="us")
    eventually(lambda: watcher.cluster.state["node/n2"].location == "us")
    admin.annotate("own", location="us")
    eventually(lambda: watcher.cluster.state[LOCAL].location == "us")
    admin.delete_node("n2")
    admin.delete_peer("p")
    watcher.has(LOCAL, "node/own")


def test_a_check_in_reaches_no_further_than_the_watcher(start: Start, admin: Admin) -> None:
    add(admin, "own", 1)
    for number in range(2, 12):
        add(admin, f"n{number}", number)
    watcher = start()
    eventually(lambda: len(watcher.cluster.state) == 13 and watcher.problems.published)
    position, problems = watcher.cluster.position, watcher.problems.position
    for second in range(5):
        for number in range(2, 12):
            admin.check_in(f"n{number}", time.time() + 1 + second)
    admin.patch(kinds.NODES, "n2", {"metadata": {"labels": {"kubelet.example/beat": "1"}}})
    add(admin, "last", 12)
    eventually(lambda: "node/last" in watcher.cluster.state)
    assert watcher.cluster.position == position + 1
    assert watcher.problems.position == problems


def test_our_own_node_is_annotated_checked_in_and_cleaned_up(start: Start, admin: Admin) -> None:
    admin.create_node("own", pod_cidr="10.2.1.0/24")
    watcher = start()
    watcher.has(LOCAL)
    watcher.announce()
    watcher.has(LOCAL, "node/own")
    found = admin.annotations("own")
    assert (found["key"], found["endpoint"]) == (key(250), "203.0.113.250:51820")
    assert abs(int(found["last-seen"]) - time.time()) < 5
    admin.annotate("own", location="eu")
    assert watcher.process.end() == 0
    assert admin.annotations("own") == {"location": "eu"}


@pytest.mark.parametrize(("number", "clean_up"), [(signal.SIGHUP, True), (signal.SIGTERM, False)])
def test_annotations_stay_over_a_restart_and_where_the_flag_says_so(
    make: Start, standin: Standin, editor: Admin, number: int, clean_up: bool
) -> None:
    add(editor, "own", 1)
    watcher = make(standin, clean_up=clean_up)
    watcher.has(LOCAL, "node/own")
    watcher.announce()
    eventually(lambda: editor.annotations("own")["key"] == key(250))
    assert watcher.process.end(number) == 0
    assert editor.annotations("own")["key"] == key(250)


def test_garbage_costs_only_itself(start: Start, admin: Admin) -> None:
    names = ["endpoint", "force-endpoint", "internal-ip", "force-internal-ip", "key", "last-seen"]
    names += ["location", "persistent-keepalive", "wireguard-ip", "discovered-endpoints"]
    names += ["allowed-location-ips", "granularity", "cni-compatibility-ip"]
    add(admin, "own", 1)
    admin.create_node("bad", dict.fromkeys(names, "\u00ff{]\n"), "10.2.7.0/24")
    admin.create_peer("bad", publicKey="?", allowedIPs=["x"])
    watcher = start()
    watcher.has(LOCAL, "node/own")
    eventually(lambda: watcher.problems.state)
    fields = {p.field for p in watcher.problems.state.values() if p.kind == "node"}
    assert fields >= {"endpoint", "key", "last-seen", "persistent-keepalive", "discovered-endpoints"}
    eventually(lambda: "peer/bad/spec.allowedIPs" in watcher.problems.state)
    lines = [line for line in watcher.process.log if line.get("name") == "bad"]
    assert len(lines) == len({(line["kind"], line["field"]) for line in lines}), "each is logged once"
    admin.annotate("bad", key=key(7), endpoint="203.0.113.7:1", last_seen=str(int(time.time())))
    admin.annotate("bad", force_endpoint=None)
    watcher.has(LOCAL, "node/own", "node/bad")


def test_first_start_says_nothing_of_its_own_node(start: Start, admin: Admin) -> None:
    admin.create_node("own", {}, "10.2.0.0/24")
    admin.create_node("bare", {}, "10.2.1.0/24")
    watcher = start()
    watcher.has(LOCAL)
    eventually(lambda: watcher.problems.state)
    watcher.announce()
    watcher.has(LOCAL, "node/own")
    assert set(watcher.problems.state) == {"node/bare/endpoint"}
    warned = {line["name"] for line in watcher.process.log if line["msg"].startswith("takes no part")}
    assert warned == {"bare"}


def test_nodes_that_were_silent_are_in_doubt_until_they_check_in(start: Start, admin: Admin) -> None:
    add(admin, "own", 1)
    add(admin, "n2", 2, last_seen=str(int(time.time()) - 3600))
    watcher = start()
    watcher.has(LOCAL, "node/own", "node/n2")
    assert watcher.cluster.state["node/n2"].doubtful
    problem = eventually(lambda: watcher.problems.state.get("node/n2/last-seen"))
    assert "too old to tell" in problem.reason
    assert 3600 <= time.time() - problem.since < 4000, "the age"
    (line,) = [line for line in watcher.process.log if line.get("name") == "n2"]
    assert 3600 <= int(line["age"].removesuffix(" s")) < 4000
    admin.check_in("n2", time.time() - 3590)
    eventually(lambda: not watcher.cluster.state["node/n2"].doubtful)
    eventually(lambda: not watcher.problems.state)


def test_where_the_api_server_is_and_whether_it_answers(
    faulty: Start, standin: Standin, editor: Admin
) -> None:
    add(editor, "own", 1)
    labels = {"node-role.kubernetes.io/control-plane": ""}
    editor.create_node("cp", participant(2), "10.2.2.0/24", labels)
    watcher = faulty(factory=soon_away)
    watcher.has(LOCAL, "node/own", "node/cp")
    assert watcher.cluster.state["node/cp"].control_plane
    assert watcher.cluster.state[ApiEntry.KEY] == ApiEntry(("127.0.0.1",), True)
    refused = time.monotonic()
    standin.refuse()
    eventually(lambda: watcher.cluster.state[ApiEntry.KEY] == ApiEntry(("127.0.0.1",), False), 30)
    assert time.monotonic() - refused > 1.4, "a watch that is made anew is no outage"
    assert set(watcher.cluster.state) == {LOCAL, "node/own", "node/cp", ApiEntry.KEY}
    standin.accept()
    eventually(lambda: watcher.cluster.state[ApiEntry.KEY].reachable, 40)


def test_the_first_that_is_said_of_the_cluster_names_the_servers_addresses(
    faulty: Start, standin: Standin
) -> None:
    server = standin.url.replace("127.0.0.1", "localhost")
    watcher = faulty(factory=with_slow_names, kubeconfig="", master=server)
    first = eventually(lambda: watcher.cluster.first)
    assert "127.0.0.1" in first.upserts[ApiEntry.KEY].addresses


def test_a_name_that_does_not_resolve_costs_that_endpoint(start: Start, admin: Admin) -> None:
    add(admin, "own", 1)
    add(admin, "named", 2, endpoint="localhost:51820")
    add(admin, "nowhere", 3, endpoint="name.that.is.invalid:51820")
    endpoint = {"dnsOrIP": {"dns": "name.that.is.invalid"}, "port": 1}
    admin.create_peer("p", publicKey=key(9), allowedIPs=["10.5.0.1/32"], endpoint=endpoint)
    watcher = start()
    watcher.has(LOCAL, "node/own", "node/named", "node/nowhere", "peer/p")
    assert watcher.cluster.state["node/named"].endpoint == Endpoint("localhost", 51820, "127.0.0.1")
    assert watcher.cluster.state["node/nowhere"].endpoint == Endpoint("name.that.is.invalid", 51820)
    eventually(lambda: set(watcher.problems.state) == {"node/nowhere/endpoint", "peer/p/spec.endpoint"})


def test_peers_are_picked_up_when_their_definition_appears(start: Start, admin: Admin) -> None:
    admin.delete_crd()
    add(admin, "own", 1)
    watcher = start()
    watcher.has(LOCAL, "node/own")
    watcher.failing("peers", "peers.kilo.squat.ai")
    admin.create_crd(CRDS_FILE)
    admin.create_peer("p", publicKey=key(9), allowedIPs=["10.5.0.1/32"])
    watcher.has(LOCAL, "node/own", "peer/p")
    watcher.works()


def test_a_missing_own_node_is_said_so(start: Start, admin: Admin) -> None:
    add(admin, "n2", 2)
    watcher = start()
    watcher.has("node/n2")
    watcher.failing("node", "there is no Node named own")
    add(admin, "own", 1)
    watcher.has(LOCAL, "node/own", "node/n2")
    watcher.works()


# With a stand-in that fails.


def test_nothing_is_published_before_nodes_and_peers_have_been_read(
    faulty: Start, standin: Standin, editor: Admin
) -> None:
    add(editor, "own", 1)
    standin.fail(403, times=None, match="GET " + kinds.PEERS.path)
    watcher = faulty()
    watcher.failing("api peers", "cannot list peers.kilo.squat.ai: 403 Forbidden")
    eventually(lambda: watcher.problems.published)
    assert not watcher.cluster.published
    assert watcher.state().phase == "starting"
    standin.heal()
    watcher.has(LOCAL, "node/own")
    watcher.works()


def test_the_api_goes_away_and_comes_back(faulty: Start, standin: Standin, editor: Admin) -> None:
    add(editor, "own", 1)
    add(editor, "n2", 2)
    editor.close()
    watcher = faulty(factory=soon_away)
    watcher.has(LOCAL, "node/own", "node/n2")
    before = dict(watcher.cluster.state)
    standin.refuse()
    watcher.failing("api nodes", "Connection refused")
    eventually(lambda: "nodes: unreachable since 2" in watcher.state().info.get("api", ""))
    eventually(lambda: "api nodes" in watcher.state().failing)
    peer = {"metadata": {"name": "p"}, "spec": {"publicKey": key(9), "allowedIPs": ["10.5.0.1/32"]}}
    standin.change(lambda s: s.create(kinds.PEERS, peer))
    eventually(lambda: not watcher.cluster.state[ApiEntry.KEY].reachable)
    after = watcher.cluster.state | {ApiEntry.KEY: before[ApiEntry.KEY]}
    assert after == before, "silence is no news of nodes and peers"
    standin.accept()
    watcher.has(LOCAL, "node/own", "node/n2", "peer/p")
    watcher.works()
    logged = [line for line in watcher.process.log if line.get("failing") == "api nodes"]
    assert len(logged) < 6, "not a line for every attempt"


def test_a_lost_history_loses_nothing(faulty: Start, standin: Standin, editor: Admin) -> None:
    add(editor, "own", 1)
    add(editor, "goes", 2)
    watcher = faulty()
    watcher.has(LOCAL, "node/own", "node/goes")
    position = watcher.cluster.position
    standin.pause()
    standin.drop()
    standin.change(lambda s: s.delete(kinds.NODES, "goes"))
    standin.compact()
    standin.resume()
    watcher.has(LOCAL, "node/own")
    assert watcher.cluster.position == position + 1, "one message: the one node that went"


def test_an_object_that_does_not_even_decode_costs_only_itself(
    faulty: Start, standin: Standin, editor: Admin
) -> None:
    add(editor, "own", 1)
    editor.create(kinds.NODES, {"metadata": {"name": "bad", "annotations": 5}})
    editor.create(kinds.PEERS, {"metadata": {"name": "bad"}, "spec": [1]})
    watcher = faulty()
    watcher.has(LOCAL, "node/own")
    eventually(lambda: set(watcher.problems.state) == {"node/bad/metadata.annotations", "peer/bad/spec"})
    eventually(lambda: watcher.state().errors.get("object") == 2)
    editor.delete(kinds.NODES, "bad")
    editor.delete(kinds.PEERS, "bad")
    eventually(lambda: not watcher.problems.state)


def test_an_object_without_a_name_is_told(make: Start, standin: Standin) -> None:
    head = b'{"kind":"NodeList","metadata":{"resourceVersion":"1"},"items":['
    with closing(OddServer(lambda request: iter([whole(head + b'{"metadata":{"name":7}}]}')]))) as odd:
        watcher = make(standin, kubeconfig="", master=odd.url)
        eventually(lambda: "an object without a name is left out" in watcher.process.messages("warn"))
        eventually(lambda: watcher.state().errors.get("object"))


def test_check_ins_that_fail_are_told(faulty: Start, standin: Standin, editor: Admin) -> None:
    add(editor, "own", 1)
    standin.fail(403, times=None, match="PATCH")
    watcher = faulty()
    watcher.announce()
    watcher.failing("check-in", "cannot patch node own: 403 Forbidden")
    standin.heal()
    watcher.works()
    assert editor.annotations("own")["key"] == key(250)


@pytest.mark.timing
def test_a_clean_shutdown_while_the_api_is_away_ends_in_time(
    faulty: Start, standin: Standin, editor: Admin
) -> None:
    add(editor, "own", 1)
    editor.close()
    watcher = faulty()
    watcher.has(LOCAL, "node/own")
    standin.pause()
    started = time.monotonic()
    assert watcher.process.end() == 1
    assert time.monotonic() - started < bound(6)
    (said,) = watcher.process.messages("stderr")
    assert said.startswith("kg watcher: the node's annotations were not removed: ")


def test_bad_configuration_ends_it_with_status_2(make: Start, standin: Standin) -> None:
    watcher = make(standin, kubeconfig="/nowhere/kubeconfig")
    assert watcher.process.wait() == 2
    assert any("/nowhere/kubeconfig does not exist" in m for m in watcher.process.messages("stderr"))
