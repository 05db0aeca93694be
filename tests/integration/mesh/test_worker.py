"""The planner's process on a real bus, with its partners played here."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilo.bus import (
    ANNOUNCE,
    CLUSTER,
    CNI,
    HELD,
    HOST,
    PLAN,
    TOPOLOGY,
    WIREGUARD,
    Change,
    Subscription,
    Topic,
)
from kilo.config import Config
from kilo.mesh import worker
from kilo.mesh.worker import DEVICE_WITHIN, MIN_GAP, MeshWorker
from kilo.model.host import HostFacts, Link, WireGuardPeerState, WorkerState
from kilo.model.node import Announcement, ApiServer, ClusterItem, UDPAddress
from kilo.model.plan import CniTarget, PlannedPeer, Summary, route_key
from kilo.worker import Context
from tests.clock import bound
from tests.feeding import PATIENCE, QUICK, Bus, Factory, Running, eventually, running
from tests.unit.mesh.states import at, host_of, key, node, peer

LOCAL = node("n1", "x")
ROAMER = node("n3", "z", persistent_keepalive=25)
CLUSTER_STATE: dict[str, ClusterItem] = {
    "local": LOCAL,
    "node/n1": LOCAL,
    "node/n2": node("n2", "y"),
    "node/n3": ROAMER,
    "peer/p": peer("p", "10.5.0.1/32"),
}


class Mesh:
    """The worker, what it publishes, and how many messages each topic took."""

    def __init__(self, bus: Bus, worker: Running) -> None:
        self.bus, self.worker = bus, worker
        self.heard: dict[str, Subscription[Any]] = {}
        self.changes: dict[str, list[Change[Any]]] = {}
        for topic in (PLAN, ANNOUNCE, CNI, TOPOLOGY):
            self._listen(topic)

    def _listen(self, topic: Topic[Any]) -> None:
        changes = self.changes[topic.name] = []

        def subscribe() -> None:
            self.heard[topic.name] = Subscription(self.bus.loop, str(self.bus.run_dir), topic, changes.append)

        self.bus.on_loop(subscribe)

    @property
    def plan(self) -> dict[str, Any]:
        return self.heard["plan"].state

    @property
    def generation(self) -> int:
        summary = self.plan.get("summary")
        return summary.generation if isinstance(summary, Summary) else 0

    @property
    def state(self) -> WorkerState:
        """What the worker last said about itself."""
        return eventually(lambda: self.bus.state("mesh"))

    @property
    def plans(self) -> float:
        return self.state.gauges.get("reconciles_total", 0)

    def failing(self, name: str) -> str:
        failing = self.state.failing
        return failing[name].message if name in failing else ""

    def after_a_beat(self) -> None:
        """Wait until the worker has spoken twice: all that was sent before is dealt with."""
        before = self.state.beat
        eventually(lambda: self.state.beat >= before + 2)


def patient(context: Context) -> MeshWorker:
    """A worker that waits for the device longer than any test waits for it."""
    worker.DEVICE_WITHIN = 10 * PATIENCE
    return MeshWorker(context)


@contextmanager
def a_mesh(run_dir: Path, factory: Factory = MeshWorker, **flags: Any) -> Iterator[Mesh]:
    bus = Bus(run_dir)
    config = Config(run_dir=str(run_dir), hostname="n1", log_level="debug", **flags)
    try:
        with running("mesh", factory, config, QUICK) as process:
            yield Mesh(bus, process)
    finally:
        bus.close()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    """With room for three segments."""
    with a_mesh(tmp_path, subnet="10.4.0.0/30") as one:
        yield one


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[Mesh]:
    with a_mesh(tmp_path) as one:
        yield one


def feed(mesh: Mesh) -> None:
    mesh.bus.update(CLUSTER, CLUSTER_STATE)
    mesh.bus.put(HOST, host=host_of(LOCAL))
    mesh.bus.put(WIREGUARD)
    eventually(lambda: mesh.generation and all(heard.complete for heard in mesh.heard.values()))
    mesh.after_a_beat()


def test_nothing_is_said_before_everything_is_known(mesh: Mesh) -> None:
    waiting = eventually(lambda: mesh.state.info.get("waiting_for"))
    assert "cluster" in waiting
    mesh.bus.update(CLUSTER, CLUSTER_STATE)
    eventually(lambda: "netctl" in mesh.state.info.get("waiting_for", ""))
    assert not mesh.heard["plan"].complete
    mesh.bus.put(HOST, host=host_of(LOCAL))
    eventually(lambda: mesh.generation == 1)
    eventually(lambda: mesh.state.phase == "ready" and "waiting_for" not in mesh.state.info)
    assert mesh.heard["cni"].state == {"cni": CniTarget("10.2.1.0/24", 1420)}
    announced = eventually(lambda: mesh.heard["announce"].state)["announce"]
    assert isinstance(announced, Announcement)
    assert announced.wireguard_ip == "10.4.0.1/30"
    assert sorted(eventually(lambda: mesh.heard["topology"].state)) == [
        "head",
        "peer/p",
        "segment/location:x",
        "segment/location:y",
        "segment/location:z",
    ]
    gauges = {"leader": 1, "nodes": 3, "peers": 1}
    eventually(lambda: gauges.items() <= mesh.state.gauges.items())


def test_only_what_differs_goes_out(mesh: Mesh) -> None:
    feed(mesh)
    before = len(mesh.changes["plan"])
    mesh.bus.update(CLUSTER, {"peer/p": peer("p", "10.5.0.9/32")})
    eventually(lambda: len(mesh.changes["plan"]) > before)
    (change,) = mesh.changes["plan"][before:]
    assert mesh.generation == 2
    assert sorted(change.upserts) == [
        "entry/masquerade_from/10.5.0.9/32",
        "entry/no_masquerade_to/10.5.0.9/32",
        f"peer/{key('p')}",
        "route/0/10.5.0.9/32",
        "summary",
    ]
    assert len(change.removals) == 3


def test_changes_that_come_close_together_cost_few_plans(mesh: Mesh) -> None:
    feed(mesh)
    before, started = mesh.plans, time.monotonic()
    for number in range(100):
        mesh.bus.update(CLUSTER, {"peer/p": peer("p", f"10.5.0.{number}/32")})
        time.sleep(0.002)
    eventually(lambda: "route/0/10.5.0.99/32" in mesh.plan)
    most = (time.monotonic() - started) / MIN_GAP + 2
    mesh.after_a_beat()
    assert mesh.plans - before < min(most, 100)


def test_what_the_annotations_know_is_forgotten_once_the_device_has_been_looked_at(mesh: Mesh) -> None:
    known = {key("n3"): UDPAddress("198.51.100.3", 999)}
    local = msgspec.structs.replace(LOCAL, discovered_endpoints=known)
    mesh.bus.update(CLUSTER, CLUSTER_STATE | {"local": local, "node/n1": local})
    mesh.bus.put(HOST, host=host_of(LOCAL))
    announced = eventually(lambda: mesh.heard["announce"].state.get("announce"))
    assert announced.discovered_endpoints == known
    mesh.bus.put(WIREGUARD)
    eventually(lambda: mesh.heard["announce"].state["announce"].discovered_endpoints == {})


def test_traffic_causes_no_plan_and_roaming_does(mesh: Mesh) -> None:
    feed(mesh)
    before = mesh.plans
    steady = WireGuardPeerState(key("n2"), "203.0.113.2", 51820, last_handshake=1)
    for count in range(5):
        mesh.bus.update(WIREGUARD, {key("n2"): msgspec.structs.replace(steady, received_bytes=count)})
        guess = WireGuardPeerState(key("n3"), "203.0.113.3", 51820, sent_bytes=count)
        mesh.bus.update(WIREGUARD, {key("n3"): guess})
    mesh.after_a_beat()
    assert mesh.plans == before
    found = WireGuardPeerState(key("n3"), "198.51.100.3", 999, last_handshake=1)
    mesh.bus.update(WIREGUARD, {key("n3"): found})
    announced = {key("n3"): UDPAddress("198.51.100.3", 999)}
    eventually(lambda: mesh.heard["announce"].state["announce"].discovered_endpoints == announced)
    planned = mesh.plan[f"peer/{key('n3')}"]
    assert isinstance(planned, PlannedPeer)
    assert (planned.endpoint_ip, planned.endpoint_port, planned.roams) == ("198.51.100.3", 999, True)
    after = mesh.plans
    later = msgspec.structs.replace(found, last_handshake=99, received_bytes=5)
    mesh.bus.update(WIREGUARD, {key("n3"): later})
    mesh.after_a_beat()
    assert mesh.plans <= after + 1
    mesh.bus.update(WIREGUARD, {}, remove=(key("n3"),))
    eventually(lambda: mesh.heard["announce"].state["announce"].discovered_endpoints == {})


def test_what_cannot_be_planned_leaves_the_last_plan_in_force(mesh: Mesh) -> None:
    feed(mesh)
    good = dict(mesh.plan)
    mesh.bus.update(CLUSTER, {"node/n4": node("n4", "w")})
    message = eventually(lambda: mesh.failing("plan"))
    assert "10.4.0.0/30 has 3 addresses for 4 segments" in message
    mesh.bus.update(CLUSTER, {"node/n5": node("n5", "v")})
    mesh.after_a_beat()
    assert mesh.plan == good
    assert len([line for line in mesh.worker.log if line.get("failing") == "plan"]) == 2, "once a message"
    mesh.bus.update(CLUSTER, {}, remove=("node/n4", "node/n5"))
    eventually(lambda: not mesh.failing("plan"))
    assert mesh.plan == good


def test_a_node_that_is_gone_is_named_and_the_plan_stays(mesh: Mesh) -> None:
    feed(mesh)
    good = dict(mesh.plan)
    mesh.bus.update(CLUSTER, {}, remove=("local", "node/n1"))
    assert "no node n1" in eventually(lambda: mesh.failing("plan"))
    assert mesh.plan == good


def test_conflicts_are_told_and_taken_back(mesh: Mesh) -> None:
    feed(mesh)
    mesh.bus.update(CLUSTER, {"node/n3": msgspec.structs.replace(ROAMER, key=key("n2"))})
    assert "same public key" in eventually(lambda: mesh.failing(f"key/{key('n2')}"))
    third = msgspec.structs.replace(peer("q", "10.5.0.7/32"), public_key=key("n2"))
    mesh.bus.update(CLUSTER, {"peer/q": third})
    eventually(lambda: "peer q" in mesh.failing(f"key/{key('n2')}"))
    mesh.bus.update(CLUSTER, {"node/n3": ROAMER}, remove=("peer/q",))
    eventually(lambda: not mesh.failing(f"key/{key('n2')}"))


THIEF = node("n0", "a", key=key("n2"), subnet="10.2.99.0/24", endpoint=at("203.0.113.99"))


def has_the_key_of_n2(mesh: Mesh) -> str:
    """Where packets for the peer with that key are sent."""
    item = mesh.plan.get(f"peer/{key('n2')}")
    return item.endpoint_ip if isinstance(item, PlannedPeer) else ""


def test_a_copied_key_does_not_displace_who_had_it(wide: Mesh) -> None:
    feed(wide)
    before = wide.plan[f"peer/{key('n2')}"]
    wide.bus.update(CLUSTER, {"node/n0": THIEF})
    assert "node n2 and node n0" in eventually(lambda: wide.failing(f"key/{key('n2')}"))
    after = wide.plan[f"peer/{key('n2')}"]
    assert (after.endpoint_ip, after.allowed_ips[:2]) == (before.endpoint_ip, before.allowed_ips[:2])


def test_who_was_away_has_his_key_back_when_he_comes_back(wide: Mesh) -> None:
    feed(wide)
    wide.bus.update(CLUSTER, {}, remove=("node/n2",))
    wide.bus.update(CLUSTER, {"node/n0": THIEF})
    eventually(lambda: has_the_key_of_n2(wide) == "203.0.113.99")
    wide.bus.update(CLUSTER, {"node/n2": CLUSTER_STATE["node/n2"]})
    eventually(lambda: has_the_key_of_n2(wide) == "203.0.113.2")


def test_after_a_start_of_all_the_kernel_tells_whose_a_key_is(wide: Mesh) -> None:
    wide.bus.update(CLUSTER, CLUSTER_STATE | {"node/n0": THIEF})
    wide.bus.put(HOST, host=host_of(LOCAL))
    eventually(lambda: "public key" in wide.state.info.get("waiting_for", ""))
    wide.bus.put(HELD)
    wide.after_a_beat()
    assert not wide.plan
    wide.bus.update(WIREGUARD, {key("n2"): WireGuardPeerState(key("n2"), "203.0.113.2", 51820)})
    eventually(lambda: has_the_key_of_n2(wide) == "203.0.113.2")
    eventually(lambda: "waiting_for" not in wide.state.info)


def test_where_there_is_no_device_yet_the_first_plan_comes_all_the_same(wide: Mesh) -> None:
    wide.bus.update(CLUSTER, CLUSTER_STATE | {"node/n0": THIEF})
    wide.bus.put(HOST, host=host_of(LOCAL))
    wide.bus.put(HELD)
    started = time.monotonic()
    eventually(lambda: has_the_key_of_n2(wide), timeout=DEVICE_WITHIN + 5)
    assert time.monotonic() - started > DEVICE_WITHIN / 2


YOUNG = msgspec.structs.replace(CLUSTER_STATE["node/n2"], created=1_700_000_000)
SQUATTER = node("n0", "a", subnet="10.2.2.0/24", created=1_600_000_000)
"""The older Node, with the pod CIDR of n2 copied."""


def in_the_kernel(mesh: Mesh) -> None:
    """Tell what netctl would, once it has applied the plan."""
    peers = [item for item in mesh.plan.values() if isinstance(item, PlannedPeer)]
    states = {p.public_key: WireGuardPeerState(p.public_key, allowed_ips=p.allowed_ips) for p in peers}
    mesh.bus.update(WIREGUARD, states)
    mesh.bus.update(HELD, {k: True for k in mesh.plan if k.startswith("route/")})


def has_the_pods_of_n2(mesh: Mesh) -> list[str]:
    """Names of those whose WireGuard peer has them."""
    names = {key(name): name for name in ("n0", "n2")}
    peers = [item for item in mesh.plan.values() if isinstance(item, PlannedPeer)]
    return [names[p.public_key] for p in peers if "10.2.2.0/24" in p.allowed_ips]


def test_after_a_restart_of_mesh_a_copied_network_stays_where_the_kernel_has_it(tmp_path: Path) -> None:
    bus, config = Bus(tmp_path), Config(run_dir=str(tmp_path), hostname="n1", log_level="debug")
    try:
        with running("mesh", MeshWorker, config, QUICK) as worker:
            before = Mesh(bus, worker)
            feed(before)
            bus.update(CLUSTER, {"node/n2": YOUNG})
            bus.update(CLUSTER, {"node/n0": SQUATTER})
            told = eventually(lambda: before.failing("network/10.2.2.0/24"))
            assert told.startswith("node n2 and node n0 claim")
            assert has_the_pods_of_n2(before) == ["n2"]
            in_the_kernel(before)
            assert worker.end(signal.SIGHUP) == 0
        with running("mesh", MeshWorker, config, QUICK) as worker:
            after = Mesh(bus, worker)
            eventually(lambda: after.heard["topology"].complete and after.generation)
            assert has_the_pods_of_n2(after) == ["n2"]
            eventually(lambda: after.failing("network/10.2.2.0/24") == told)
    finally:
        bus.close()


def test_after_a_start_of_all_a_copied_network_that_is_routed_waits_for_the_device(wide: Mesh) -> None:
    wide.bus.update(CLUSTER, CLUSTER_STATE | {"node/n2": YOUNG, "node/n0": SQUATTER})
    wide.bus.put(HOST, host=host_of(LOCAL))
    eventually(lambda: "network" in wide.state.info.get("waiting_for", ""))
    wide.bus.update(HELD, {route_key("10.2.2.0/24"): True})
    wide.after_a_beat()
    assert not wide.plan
    wide.bus.update(WIREGUARD, {key("n2"): WireGuardPeerState(key("n2"), allowed_ips=("10.2.2.0/24",))})
    assert eventually(lambda: has_the_pods_of_n2(wide)) == ["n2"]
    eventually(lambda: "waiting_for" not in wide.state.info)


def test_copied_network_that_has_no_route_is_planned_without_the_device(tmp_path: Path) -> None:
    with a_mesh(tmp_path, patient) as mesh:
        mesh.bus.update(CLUSTER, CLUSTER_STATE | {"node/n2": YOUNG, "node/n0": SQUATTER})
        mesh.bus.put(HOST, host=host_of(LOCAL))
        mesh.bus.put(HELD)
        assert eventually(lambda: has_the_pods_of_n2(mesh)) == ["n0"], "the older one"


def test_peers_that_share_a_network_wait_for_nobody(wide: Mesh) -> None:
    """Of those it is the first by name, whatever the kernel has."""
    wide.bus.update(CLUSTER, CLUSTER_STATE | {"peer/q": peer("q", "10.5.0.1/32", "10.5.0.1/32")})
    wide.bus.put(HOST, host=host_of(LOCAL))
    eventually(lambda: wide.generation == 1)


def doubtful(*names: str) -> dict[str, ClusterItem]:
    """These nodes as a watcher that has just started may see them."""
    return {
        f"node/{name}": msgspec.structs.replace(CLUSTER_STATE[f"node/{name}"], doubtful=True)
        for name in names
    }


def test_a_node_in_doubt_stays_where_it_was_part_of_the_mesh_and_no_other_comes_in(mesh: Mesh) -> None:
    feed(mesh)
    mesh.bus.put(HELD)
    before = dict(mesh.plan)
    stranger = msgspec.structs.replace(node("n4", "y"), doubtful=True)
    mesh.bus.update(CLUSTER, doubtful("n2", "n3") | {"node/n4": stranger})
    mesh.after_a_beat()
    assert mesh.plan == before
    mesh.bus.update(CLUSTER, {"node/n2": CLUSTER_STATE["node/n2"]}, remove=("node/n3", "node/n4"))
    eventually(lambda: mesh.generation == 2)
    assert f"peer/{key('n2')}" in mesh.plan and f"peer/{key('n3')}" not in mesh.plan


def test_after_a_start_of_all_the_kernel_tells_which_nodes_in_doubt_are_in_use(mesh: Mesh) -> None:
    mesh.bus.put(HOST, host=host_of(LOCAL))
    mesh.bus.put(WIREGUARD)
    mesh.bus.update(CLUSTER, CLUSTER_STATE | doubtful("n2", "n3"))
    eventually(lambda: "in doubt" in mesh.state.info.get("waiting_for", ""))
    subnet = CLUSTER_STATE["node/n2"].subnet  # type: ignore[union-attr]
    mesh.bus.update(HELD, {route_key(subnet): True, route_key("10.99.0.0/24"): True})
    eventually(lambda: mesh.generation == 1)
    assert f"peer/{key('n2')}" in mesh.plan and f"peer/{key('n3')}" not in mesh.plan
    mesh.bus.update(HELD, {}, remove=(route_key(subnet),))
    mesh.bus.update(CLUSTER, {"peer/p": peer("p", "10.5.0.9/32")})
    eventually(lambda: mesh.generation == 2)
    assert f"peer/{key('n2')}" in mesh.plan, "the kernel may lose a route for a moment"


@pytest.mark.parametrize("left", [True, False])
def test_of_neighbours_to_whom_somebody_else_routes_the_kernel_cannot_tell(
    tmp_path: Path, left: bool
) -> None:
    """With --local=false no route of ours leads to them: those in doubt stay, where there has been a mesh."""
    neighbour = msgspec.structs.replace(node("n4", "x"), doubtful=True)
    with a_mesh(tmp_path, local=False) as mesh:
        mesh.bus.put(HOST, host=host_of(LOCAL))
        mesh.bus.put(WIREGUARD)
        mesh.bus.update(HELD, {route_key("10.2.2.0/24"): True} if left else {})
        mesh.bus.update(CLUSTER, CLUSTER_STATE | doubtful("n2", "n3") | {"node/n4": neighbour})
        topology = eventually(lambda: mesh.heard["topology"].state)
    assert topology["segment/location:x"].hostnames == (("n1", "n4") if left else ("n1",))
    assert "segment/location:z" not in topology


def test_where_the_api_server_is_goes_with_the_plan(mesh: Mesh) -> None:
    feed(mesh)
    assert ApiServer.KEY not in mesh.plan
    control = msgspec.structs.replace(node("n2", "y", internal_ip="10.1.0.2/24"), control_plane=True)
    news: dict[str, ClusterItem] = {ApiServer.KEY: ApiServer(("203.0.113.9",), True), "node/n2": control}
    mesh.bus.update(CLUSTER, news)
    expected = ApiServer(("10.1.0.2", "203.0.113.9"), True)
    eventually(lambda: mesh.plan.get(ApiServer.KEY) == expected)


def test_a_new_address_of_the_host_is_announced(mesh: Mesh) -> None:
    feed(mesh)
    links = (Link("eth0", 2, 1500, up=True, addresses=("10.0.0.77/24",)),)
    mesh.bus.put(HOST, host=HostFacts(LOCAL.key, links=links, default_link="eth0"))
    eventually(lambda: mesh.heard["announce"].state["announce"].internal_ip == "10.0.0.77/24")


def test_host_whose_address_is_a_services_has_no_internal_ip_and_says_so(mesh: Mesh) -> None:
    feed(mesh)
    eventually(lambda: mesh.state.gauges.get("internal_ip") == 1)
    links = (
        Link("eth0", 2, 1500, addresses=("203.0.113.1/24",)),
        Link("kube-ipvs0", 3, 1500, "dummy", False, ("10.233.0.1/32",)),
    )
    mesh.bus.put(HOST, host=HostFacts(LOCAL.key, links=links, default_link="eth0"))
    eventually(lambda: mesh.heard["announce"].state["announce"].internal_ip == "")
    eventually(lambda: mesh.state.gauges["internal_ip"] == 0)
    assert "10.233.0.1 does not count (kube-ipvs0 is down)" in mesh.state.info["internal_ip"]
    assert set(mesh.state.failing) == {"subnet/broadcast"}, "a node without an internal IP is not degraded"


@pytest.mark.timing
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_ends_when_told(mesh: Mesh, number: int) -> None:
    feed(mesh)
    started = time.monotonic()
    assert mesh.worker.end(number) == 0
    assert time.monotonic() - started < bound(5)
    assert mesh.plan, "what was planned stays planned"
