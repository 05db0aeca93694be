"""The text is what Prometheus reads, with the Go agent's names and types, whatever workers say."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kilo.health import metrics
from kilo.health.gather import Snapshot
from kilo.health.metrics import peer_names, render
from kilo.model.readiness import WorkerView
from kilo.model.topology import PeerView
from tests.unit.health.samples import NOW, key, problem, snapshot, state, topology, views, wireguard


def families(taken: Snapshot) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(render(taken).decode())}


def values(family: Metric) -> dict[tuple[str, ...], float]:
    """Values by the values of the labels, in the order of the labels' names."""
    return {tuple(v for _, v in sorted(s.labels.items())): s.value for s in family.samples}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("kilo_leader 1.0", "gauge"),
        ("kilo_nodes 3.0", "gauge"),
        ("kilo_peers 1.0", "gauge"),
        ("kilo_reconciles_total 7.0", "counter"),
        ('kilo_errors_total{event="apply"} 3.0', "counter"),
    ],
)
def test_the_go_agents_metrics(line: str, kind: str) -> None:
    mesh = WorkerView("mesh", state("mesh", gauges={"reconciles_total": 7.0, "nodes": 9.0}), 0.1)
    lines = render(snapshot(workers=views(mesh=mesh), errors={"apply": 3})).decode().splitlines()
    assert line in lines
    name = line.partition(" ")[0].partition("{")[0]
    assert f"# TYPE {name} {kind}" in lines


def test_each_worker_has_process_metrics() -> None:
    found = families(snapshot())
    names = {(name,) for name in ("watcher", "mesh", "netctl", "cni", "health")}
    assert values(found["kilo_process_cpu_seconds"]) == dict.fromkeys(names, 1.5)
    assert values(found["kilo_process_resident_memory_bytes"]) == dict.fromkeys(names, 20 << 20)
    assert values(found["kilo_process_open_fds"]) == dict.fromkeys(names, 12)
    assert values(found["kilo_process_start_time_seconds"]) == dict.fromkeys(names, NOW - 3700)
    assert values(found["kilo_worker_up"]) == values(found["kilo_worker_ready"]) == dict.fromkeys(names, 1)
    assert values(found["kilo_worker_heartbeat_age_seconds"]) == dict.fromkeys(names, 0.4)
    assert values(found["kilo_ready"]) == {(): 1}


def test_a_worker_that_is_silent_is_down_and_its_process_unknown() -> None:
    workers = views(
        mesh=WorkerView("mesh", state("mesh", gauges={"x": 1.0}), 17.0),
        cni=WorkerView("cni"),
        watcher=WorkerView("watcher", state("watcher", phase="starting"), 0.1),
    )
    found = families(snapshot(workers=workers))
    assert values(found["kilo_worker_up"]) == {
        ("watcher",): 1,
        ("mesh",): 0,
        ("netctl",): 1,
        ("cni",): 0,
        ("health",): 1,
    }
    assert values(found["kilo_worker_ready"])[("watcher",)] == 0
    assert values(found["kilo_worker_heartbeat_age_seconds"])[("mesh",)] == 17
    assert ("cni",) not in values(found["kilo_worker_heartbeat_age_seconds"])
    assert ("mesh",) not in values(found["kilo_process_open_fds"])
    assert "kilo_x" not in found
    assert values(found["kilo_ready"]) == {(): 0}


def test_before_anything_is_known_nothing_is_claimed() -> None:
    nobody = {name: WorkerView(name) for name in views()}
    found = families(snapshot(workers=nobody, topology=None, problems=None, wireguard=None, host=None))
    unknown = ("kilo_leader", "kilo_nodes", "kilo_peers", "kilo_problems", "kilo_reconciles")
    assert not found.keys() & set(unknown)
    assert values(found["kilo_worker_up"]) == {(name,): 0 for name in nobody}


def test_problems_by_kind() -> None:
    problems = {
        "1": problem("x"),
        "2": problem("y"),
        "3": problem("z", kind="peer"),
        "4": problem("q", kind='we"ird\n'),
    }
    assert values(families(snapshot(problems=problems))["kilo_problems"]) == {
        ("node",): 2,
        ("peer",): 1,
        ("other",): 1,
    }


def test_wireguard_peers_have_key_and_name() -> None:
    found = families(snapshot())
    assert values(found["kilo_peer_last_handshake_seconds"]) == {
        ("b", key(2)): NOW - 30,
        ("laptop", key(9)): 0,
    }
    assert values(found["kilo_peer_received_bytes"])[("b", key(2))] == 2048
    assert values(found["kilo_peer_sent_bytes"])[("b", key(2))] == 4096


def test_the_number_of_peers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PEERS_MAX", 1)
    assert len(values(families(snapshot())["kilo_peer_sent_bytes"])) == 1


def test_what_workers_say_under_the_same_names_is_no_second_series() -> None:
    found = gauges(mesh={"leader": 0.0, "nodes": 7.0, "peers": 7.0}, watcher={"problems": 7.0})
    assert values(found["kilo_nodes"]) == {(): 3}
    assert values(found["kilo_problems"]) == {("node",): 0, ("peer",): 0}
    assert set(values(found["kilo_gauges_refused"]).values()) == {0}


def gauges(**workers: Mapping[str, float]) -> dict[str, Metric]:
    special = {name: WorkerView(name, state(name, gauges=given), 0.1) for name, given in workers.items()}
    return families(snapshot(workers=views(**special)))


def test_gauges_of_workers_carry_their_name_and_counters_are_counters() -> None:
    found = gauges(cni={"cni_writes_total": 2.0, "queue": 1.5}, mesh={"queue": 3.0})
    assert found["kilo_cni_writes"].type == "counter"
    assert values(found["kilo_cni_writes"]) == {("cni",): 2}
    assert values(found["kilo_queue"]) == {("cni",): 1.5, ("mesh",): 3}


def test_hostile_names_are_refused_and_counted() -> None:
    hostile = {
        'x{a="1"} 1\nkilo_leader': 1.0,
        "ready": 9.0,
        "build_info": 9.0,
        "errors_total": 9.0,
        "process_open_fds": 9.0,
        "worker_up": 9.0,
        "peer_sent_bytes_total": 9.0,
        "Upper": 9.0,
        "with-dash": 9.0,
        "naïve": 9.0,
        "": 9.0,
        "x" * 200: 9.0,
        "fine": float("nan"),
    }
    found = gauges(mesh=hostile)
    assert values(found["kilo_gauges_refused"])[("mesh",)] == len(hostile) - 1
    assert list(values(found["kilo_fine"])) == [("mesh",)]
    assert values(found["kilo_ready"]) == {(): 1}
    assert len(values(found["kilo_build_info"])) == 1
    assert values(found["kilo_worker_up"])[("mesh",)] == 1
    assert len(values(found["kilo_peer_sent_bytes"])) == len(wireguard())


def test_too_many_gauges_are_cut() -> None:
    found = gauges(mesh={f"g{i}": 1.0 for i in range(metrics.GAUGES_MAX + 20)})
    assert values(found["kilo_gauges_refused"])[("mesh",)] == 20
    assert sum(name.startswith("kilo_g") and name[6:].isdigit() for name in found) == metrics.GAUGES_MAX


def test_label_values_are_escaped() -> None:
    found = families(snapshot(errors={'a"b\\c\nd': 1}))
    assert values(found["kilo_errors"]) == {('a"b\\c\\nd',): 1}


def test_peers_with_one_public_key_have_the_name_of_the_one_that_keeps_it() -> None:
    mesh = topology() | {
        "peer/aaa": PeerView("aaa", key(9), ("10.5.0.2/32",), key_lost=True),
        "peer/zzz": PeerView("zzz", key(9), ("10.5.0.3/32",), key_lost=True),
        "peer/copy": PeerView("copy", key(2), ("10.5.0.4/32",), key_lost=True),
    }
    assert peer_names(snapshot(topology=mesh)) == {key(1): "a", key(2): "b", key(9): "laptop"}


def test_name_with_control_characters_is_a_label_with_escapes() -> None:
    mesh = topology() | {"peer/laptop": PeerView("la\x1bp\0t\u202eop", key(9), ("10.5.0.1/32",))}
    found = families(snapshot(topology=mesh))
    assert ("la\\x1bp\\x00t\\u202eop", key(9)) in values(found["kilo_peer_sent_bytes"])
