"""The worker in a process of its own, fed over a real bus and asked over real HTTP."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kilo.bus import HOST, PROBLEMS, TOPOLOGY, WIREGUARD, state_of
from kilo.config import Config
from kilo.health.worker import HealthWorker
from kilo.model.host import Failure, HostFacts
from kilo.model.readiness import NO_PODS
from kilo.model.topology import TopologyHead, TopologyItem
from tests.clock import bound
from tests.feeding import Bus, Running, eventually, running
from tests.unit.health.client import Address, Answer, fetch
from tests.unit.health.samples import key, problem, segment, state, topology, wireguard

OTHERS = ("watcher", "mesh", "netctl", "cni")


class Health:
    """The worker under test, and the bus on which its partners are played."""

    def __init__(self, bus: Bus, worker: Running) -> None:
        self.bus = bus
        self.worker = worker
        found = eventually(lambda: [line for line in worker.log if line["msg"] == "listening"])
        host, _, port = found[0]["address"].rpartition(":")
        self.address: Address = (host, int(port))
        self._beat = 0

    def beat(self, *workers: str, **values: Any) -> None:
        """A heartbeat of each of ``workers`` (default: all)."""
        self._beat += 1
        always = {"beat": self._beat, "gauges": {"applied_generation": 1.0}}
        for name in workers or OTHERS:
            self.bus.put(state_of(name), state=state(name, **always | values))

    def feed(self, items: dict[str, TopologyItem] | None = None) -> None:
        """A mesh where all is well."""
        self.bus.update(TOPOLOGY, topology() if items is None else items)
        self.bus.update(WIREGUARD, wireguard())
        self.bus.put(PROBLEMS)
        self.bus.put(HOST, host=HostFacts(key(1), wireguard="userspace"))
        self.beat()

    def get(self, target: str) -> Answer:
        return fetch(self.address, target)

    def metric(self, name: str, **labels: str) -> float | None:
        text = self.get("/metrics").body.decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return None

    def ready(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/ready").body)
        return found


def config(bus: Bus, port: int = 0) -> Config:
    return Config(run_dir=str(bus.run_dir), hostname="a", listen=("127.0.0.1", port))


@pytest.fixture
def health(tmp_path: Path) -> Iterator[Health]:
    bus = Bus(tmp_path / "run")
    try:
        with running("health", HealthWorker, config(bus)) as worker:
            yield Health(bus, worker)
    finally:
        bus.close()


def test_alone_it_lives_and_says_what_is_missing(health: Health) -> None:
    alive = health.get("/health")
    assert (alive.status, alive.body) == (200, b"ok\n")
    answer = health.get("/ready")
    assert answer.status == 503
    eventually(lambda: "health" not in health.ready()["not_ready"])
    assert health.ready()["not_ready"] == {
        **dict.fromkeys(OTHERS, "not heard"),
        "topology": "there is no plan yet",
    }
    assert health.get("/graph").status == 503
    assert b"There is no topology yet" in health.get("/").body
    assert health.metric("kilo_worker_up", worker="mesh") == 0
    assert health.metric("kilo_nodes") is None


def test_ready_when_all_are_and_a_plan_is_applied(health: Health) -> None:
    health.feed()
    eventually(lambda: health.get("/ready").status == 200)
    health.beat("netctl", phase="starting", failing={"link": Failure("no device", 1)})
    eventually(lambda: health.get("/ready").status == 503)
    assert health.ready() == {
        "ready": False,
        "not_ready": {"netctl": "starting"},
        "failing": {"netctl/link": "no device"},
    }


def test_one_worker_alone_can_be_asked_for(health: Health) -> None:
    health.feed()
    eventually(lambda: health.get("/ready?worker=netctl").status == 200)
    health.beat("netctl", phase="starting", failing={"link": Failure("no device", 1)})
    eventually(lambda: health.get("/ready?worker=netctl").status == 503)
    said = json.loads(health.get("/ready?worker=netctl").body)
    assert (said["not_ready"], said["failing"]) == ({"netctl": "starting"}, {"netctl/link": "no device"})

    def others() -> set[int]:
        return {health.get(f"/ready?worker={name}").status for name in ("watcher", "mesh", "cni", "health")}

    eventually(lambda: others() == {200})
    assert health.get("/ready?worker=").status == 503, "all are meant"


def test_a_worker_that_there_is_not_is_not_found(health: Health) -> None:
    answer = health.get("/ready?worker=nobody")
    assert answer.status == 404
    names = "watcher, mesh, netctl, cni, health"
    assert answer.body.decode() == f"there is no such worker; there are {names}\n"


def test_a_node_that_can_start_no_pod_is_not_ready_until_it_can(health: Health) -> None:
    why = "no pod can be started: cannot write /etc/cni/net.d/x: Read-only file system (errno 30)"
    health.feed()
    eventually(lambda: health.get("/ready").status == 200)
    health.beat("cni", failing={"pod-cidr": Failure("refused", 1)})
    time.sleep(0.3)
    assert health.get("/ready").status == 200, "the file in place is good"
    health.beat("cni", info={NO_PODS: why})
    eventually(lambda: health.get("/ready").status == 503)
    assert health.ready()["not_ready"] == {"cni": why}
    health.beat("cni")
    eventually(lambda: health.get("/ready").status == 200)


def test_a_worker_that_falls_silent_is_stale_and_comes_back(health: Health) -> None:
    health.feed()
    eventually(lambda: health.get("/ready").status == 200)
    end = time.monotonic() + 5.6
    while time.monotonic() < end:
        health.beat("watcher", "mesh", "cni")
        time.sleep(0.5)
    assert list(health.ready()["not_ready"]) == ["netctl"]
    assert health.metric("kilo_worker_up", worker="netctl") == 0
    assert b"netctl has not been heard for" in health.get("/").body
    assert health.get("/health").status == 200
    health.beat()
    eventually(lambda: health.get("/ready").status == 200)


def test_metrics_over_http(health: Health) -> None:
    health.feed()
    eventually(lambda: health.get("/ready").status == 200, what="all is heard")
    health.beat("netctl", errors={"apply": 2}, gauges={"reconciles_total": 4.0, "routes": 6.0})
    health.beat("watcher", errors={"apply": 1})
    eventually(lambda: health.metric("kilo_errors_total", event="apply") == 3)
    assert health.metric("kilo_nodes") == 3
    assert health.metric("kilo_peers") == 1
    assert health.metric("kilo_leader") == 1
    assert health.metric("kilo_reconciles_total") == 4
    assert health.metric("kilo_routes", worker="netctl") == 6
    assert (health.metric("kilo_process_resident_memory_bytes", worker="health") or 0) > 1e6
    assert health.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
    health.beat("netctl", pid=4243, errors={"apply": 1})
    eventually(lambda: health.metric("kilo_errors_total", event="apply") == 4)


@pytest.mark.parametrize(
    ("target", "content_type", "start"),
    [
        ("/graph", "image/svg+xml", b"<?xml"),
        ("/graph?format=png&layout=dot", "image/png", b"\x89PNG"),
        ("/graph?format=json&layout=twopi", "application/json", b"{"),
        ("/graph?format=dot", "text/vnd.graphviz; charset=utf-8", b"digraph"),
        ("/graph?format=gv&layout=fdp", "text/vnd.graphviz; charset=utf-8", b"digraph"),
        ("/graph?v=7", "image/svg+xml", b"<?xml"),
    ],
)
def test_the_graph(health: Health, target: str, content_type: str, start: bytes) -> None:
    health.feed()
    answer = eventually(lambda: a if (a := health.get(target)).status == 200 else None)
    assert answer.headers["content-type"] == content_type
    assert answer.body.startswith(start)
    assert b"location:b" in answer.body or start == b"\x89PNG"


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("/graph?format=pdf", b"format: allowed are svg, png, json, dot, gv"),
        ("/graph?layout=sfdp", b"layout: allowed are circo, dot, neato, twopi, fdp"),
        ("/graph?format=svg%00", b"format: allowed"),
        ("/graph?format=dot&layout=x", b"layout: allowed"),
    ],
)
def test_other_formats_and_layouts_are_refused(health: Health, target: str, allowed: bytes) -> None:
    answer = health.get(target)
    assert answer.status == 400
    assert answer.body.startswith(allowed)


def test_a_changed_topology_is_drawn_anew(health: Health) -> None:
    health.feed()
    eventually(lambda: health.get("/graph").status == 200)
    assert b"location:c" not in health.get("/graph").body
    health.bus.update(TOPOLOGY, {"segment/location:c": segment("c", 3)}, remove=("segment/location:b",))
    eventually(lambda: b"location:c" in health.get("/graph").body)
    assert b"location:b" not in health.get("/graph").body


def test_a_mesh_too_large_to_draw_is_said_to_be(health: Health) -> None:
    segments = {f"segment/{i}": segment(f"n{i}", i) for i in range(500)}
    health.feed({**segments, "head": TopologyHead("n0", "location:n0", True, "10.4.0.0/16")})
    eventually(lambda: b"500 nodes" in health.get("/").body)
    assert b"<img" not in health.get("/").body
    answer = health.get("/graph")
    assert answer.status == 503
    assert b"124750 links are too many" in answer.body


def test_the_page(health: Health) -> None:
    health.feed()
    health.bus.update(PROBLEMS, {"node/x/key": problem("<b>x</b>")})
    answer = eventually(lambda: a if b"left out" in (a := health.get("/")).body else None)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert b"&lt;b&gt;x&lt;/b&gt;" in answer.body
    assert b"<b>" not in answer.body


def test_a_segment_whose_parts_do_not_fit_is_left_out_by_name(health: Health) -> None:
    broken = msgspec.structs.replace(segment("c", 3), leader=5)
    health.feed({**topology(), "segment/location:c": broken})
    eventually(lambda: health.metric("kilo_nodes") == 3)
    assert health.get("/").status == health.get("/graph").status == 200
    eventually(lambda: "health/topology/segment/location:c" in health.ready()["failing"])
    health.bus.update(TOPOLOGY, {"segment/location:c": segment("c", 3)})
    eventually(lambda: health.metric("kilo_nodes") == 4)
    eventually(lambda: health.ready()["failing"] == {})


def test_other_paths_and_methods(health: Health) -> None:
    for target in ("/other", "/health/", "/../etc/passwd", "/graph/x", "/metrics2"):
        assert health.get(target).status == 404
    answer = fetch(health.address, "/health", "PUT")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert fetch(health.address, "/metrics", "HEAD").body == b""


@pytest.mark.timing
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_ends_at_once_and_the_port_is_free(health: Health, number: int) -> None:
    with socket.create_connection(health.address) as sock:
        sock.sendall(b"GET /")
        start = time.monotonic()
        assert health.worker.end(number) == 0
        assert time.monotonic() - start < bound(2)
    with running("health", HealthWorker, config(health.bus, health.address[1])) as again:
        eventually(lambda: "listening" in again.messages("info"))


def test_an_address_in_use_is_told_and_waited_for(health: Health, tmp_path: Path) -> None:
    bus = Bus(tmp_path / "other")
    try:
        with running("health", HealthWorker, config(bus, health.address[1])) as second:
            message = f"cannot listen on 127.0.0.1:{health.address[1]}: Address already in use (errno 98)"
            eventually(lambda: message in second.messages("error"))
            assert health.worker.end(signal.SIGTERM) == 0
            eventually(lambda: "listening" in second.messages("info"))
    finally:
        bus.close()
