"""The worker in a process of its own, fed over a real bus, on a real directory."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kilo.bus import CNI
from kilo.cni import conflist
from kilo.cni.worker import LOOK_EVERY, CniWorker
from kilo.config import Config
from kilo.model.host import WorkerState
from kilo.model.plan import CniTarget
from kilo.model.readiness import NO_PODS
from tests.feeding import Bus, Running, eventually, running
from tests.unit.cni.test_conflist import MANIFEST

RESYNC = 0.2
CIDR, OTHER = "10.2.3.0/24", "10.2.7.0/24"
Start = Callable[..., Running]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    bus = Bus(tmp_path / "run")
    yield bus
    bus.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "net.d"
    directory.mkdir()
    return directory / "10-kilo.conflist"


@pytest.fixture
def start(bus: Bus, path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(**options: Any) -> Running:
            config = Config(
                run_dir=str(bus.run_dir), **{"cni_path": str(path), "resync_period": RESYNC, **options}
            )
            return stack.enter_context(running("cni", CniWorker, config))

        yield start


def subnets(path: Path) -> list[str]:
    try:
        plugins = json.loads(path.read_text())["plugins"]
    except FileNotFoundError:
        return []
    return [p["ipam"]["ranges"][0][0]["subnet"] for p in plugins if "ranges" in p.get("ipam", {})]


def state(bus: Bus) -> WorkerState:
    return eventually(lambda: bus.state("cni"))


def failing(bus: Bus) -> dict[str, str]:
    return {key: failure.message for key, failure in state(bus).failing.items()}


def test_no_file_then_one_and_nothing_before_the_target_is_known(bus: Bus, path: Path, start: Start) -> None:
    start()
    assert state(bus).phase == "starting"
    time.sleep(3 * RESYNC)
    assert os.listdir(path.parent) == []
    bus.put(CNI, cni=CniTarget(CIDR, 1380))
    eventually(lambda: subnets(path) == [CIDR])
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert json.loads(path.read_text())["plugins"][0]["mtu"] == 1380
    eventually(lambda: state(bus).phase == "ready")
    assert state(bus).info["pod_cidr"] == CIDR


def test_an_existing_list_gets_the_cidr_and_keeps_mtu_mode_and_owner(
    bus: Bus, path: Path, start: Start
) -> None:
    path.write_bytes(MANIFEST)
    path.chmod(0o600)
    os.chown(path, 1234, 4321)
    bus.put(CNI, cni=CniTarget(CIDR, 1280))
    start()
    eventually(lambda: subnets(path) == [CIDR])
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o600, 1234, 4321)
    assert json.loads(path.read_text())["plugins"][0]["mtu"] == 1420
    bus.put(CNI, cni=CniTarget(OTHER, 1280))
    eventually(lambda: subnets(path) == [OTHER])
    assert os.listdir(path.parent) == [path.name]


def test_a_list_that_is_right_is_not_written(bus: Bus, path: Path, start: Start) -> None:
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    first = start()
    eventually(lambda: subnets(path) == [CIDR])
    first.end()
    before = path.stat()
    second = start()
    eventually(lambda: "ready" in second.messages("info"))
    time.sleep(3 * RESYNC)
    after = path.stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


def test_somebody_elses_change_is_repaired_and_counted(bus: Bus, path: Path, start: Start) -> None:
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    worker = start()
    eventually(lambda: subnets(path) == [CIDR])
    path.write_bytes(
        MANIFEST.replace(b'"host-local"', b'"host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]')
    )
    eventually(lambda: subnets(path) == [CIDR])
    path.unlink()
    eventually(lambda: subnets(path) == [CIDR])
    gauges = eventually(lambda: g if (g := state(bus).gauges)["cni_repairs_total"] == 2 else None)
    assert gauges["cni_writes_total"] == 3
    assert len([m for m in worker.messages("warn") if "repaired" in m]) == 2


def test_a_damaged_list_is_named_left_alone_and_noticed_when_mended(
    bus: Bus, path: Path, start: Start
) -> None:
    path.write_bytes(b'{"plugins": [')
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    worker = start()
    message = eventually(lambda: failing(bus).get("conflist"))
    assert message.startswith(f"{path}: not JSON")
    time.sleep(4 * RESYNC)
    assert path.read_bytes() == b'{"plugins": ['
    assert state(bus).phase == "starting"
    assert len(worker.messages("error")) == 1
    path.write_bytes(MANIFEST)
    eventually(lambda: subnets(path) == [CIDR])
    eventually(lambda: failing(bus) == {})


def test_list_that_the_runtime_refuses_is_named_and_the_node_is_not_ready(
    bus: Bus, path: Path, start: Start
) -> None:
    nameless = MANIFEST.replace(b'"name":"kilo",', b"")
    path.write_bytes(nameless)
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    start()
    message = eventually(lambda: failing(bus).get("conflist"))
    assert message == (
        f"{path}: it has no name, without which the container runtime refuses it: "
        'give it "name": "kilo"; it is left alone'
    )
    assert eventually(lambda: state(bus).info.get(NO_PODS)) == f"no pod can be started: {message}"
    assert path.read_bytes() == nameless
    path.write_bytes(MANIFEST)
    eventually(lambda: state(bus).phase == "ready" and not failing(bus) and NO_PODS not in state(bus).info)


def test_ipam_of_another_type_is_named_and_left_alone(bus: Bus, path: Path, start: Start) -> None:
    other = MANIFEST.replace(b'"host-local"', b'"dhcp"')
    path.write_bytes(other)
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    start()
    message = eventually(lambda: failing(bus).get("ipam"))
    assert message.startswith(f"{path}: plugin 0 (bridge) has ipam of type dhcp, which is left alone")
    assert CIDR in message and "--cni=false" in message
    assert path.read_bytes() == other
    eventually(lambda: state(bus).phase == "ready" and NO_PODS not in state(bus).info)
    path.write_bytes(MANIFEST)
    eventually(lambda: subnets(path) == [CIDR] and not failing(bus))


def test_a_directory_that_is_missing_is_tried_again(bus: Bus, path: Path, start: Start) -> None:
    path.parent.rmdir()
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    start()
    message = eventually(lambda: failing(bus).get("conflist"))
    assert message == f"cannot write {path}: No such file or directory (errno 2)"
    path.parent.mkdir()
    eventually(lambda: subnets(path) == [CIDR])
    eventually(lambda: state(bus).phase == "ready")
    assert state(bus).errors["cni"] >= 1


def test_whether_pods_can_be_started_is_said_for_as_long_as_they_cannot(
    bus: Bus, path: Path, start: Start
) -> None:
    """It is the file in place that counts, and not whether writing it failed, now or earlier."""
    in_the_way = path.with_name(f".{path.name}.kilo-tmp")
    in_the_way.mkdir()

    def no_pods() -> str:
        return state(bus).info.get(NO_PODS, "")

    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    start()
    said = eventually(no_pods)
    assert said == f"no pod can be started: {failing(bus)['conflist']}"
    assert f"cannot write {path}" in said
    path.write_bytes(conflist.fresh(CniTarget(CIDR, 1420)))
    eventually(lambda: state(bus).phase == "ready" and not no_pods() and not failing(bus))
    path.unlink()
    eventually(lambda: no_pods() and state(bus).phase == "ready")
    path.write_bytes(conflist.fresh(CniTarget(OTHER, 1420)))
    time.sleep(3 * RESYNC)
    assert no_pods(), "the file is for other pods"
    bus.put(CNI, cni=CniTarget(OTHER, 1420))
    eventually(lambda: not no_pods() and not failing(bus))
    in_the_way.rmdir()


def test_a_symbolic_link_stays_and_its_file_is_replaced(
    bus: Bus, path: Path, start: Start, tmp_path: Path
) -> None:
    real = tmp_path / "elsewhere" / "list"
    real.parent.mkdir()
    real.write_bytes(MANIFEST)
    path.symlink_to(real)
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    start()
    eventually(lambda: subnets(real) == [CIDR])
    assert path.is_symlink()
    assert os.listdir(real.parent) == ["list"]
    assert os.listdir(path.parent) == [path.name]
    real.unlink()
    eventually(lambda: subnets(real) == [CIDR])
    assert path.is_symlink()


@pytest.mark.parametrize(
    "target", [CniTarget("10.2.3.4/24", 1420), CniTarget("pods", 1420), CniTarget(CIDR, 0)]
)
def test_a_bad_target_is_refused_and_the_last_good_one_kept(
    bus: Bus, path: Path, start: Start, target: CniTarget
) -> None:
    bus.put(CNI, cni=target)
    start()
    assert "refused" in eventually(lambda: failing(bus).get("pod-cidr"))
    assert not path.exists()
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    eventually(lambda: failing(bus) == {})
    assert subnets(path) == [CIDR]
    bus.put(CNI, cni=target)
    eventually(lambda: failing(bus))
    assert subnets(path) == [CIDR]
    assert NO_PODS not in state(bus).info, "pods start as before"


def test_no_target_any_more_leaves_the_list_alone(bus: Bus, path: Path, start: Start) -> None:
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    worker = start()
    eventually(lambda: subnets(path) == [CIDR])
    bus.update(CNI, {}, remove=("cni",))
    eventually(lambda: any("no pod CIDR any more" in m for m in worker.messages("info")))
    path.write_bytes(MANIFEST)
    time.sleep(3 * RESYNC)
    assert path.read_bytes() == MANIFEST


def test_other_networks_stay_and_one_that_sorts_first_is_named_once(
    bus: Bus, path: Path, start: Start
) -> None:
    first, last = path.parent / "05-other.conflist", path.parent / "99-other.conf"
    for other in (first, last):
        other.write_text("other")
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    worker = start()
    eventually(lambda: str(first) in shadowed(bus))
    time.sleep(3 * RESYNC)
    assert len([line for line in worker.log if line["level"] == "error"]) == 1
    assert first.read_text() == last.read_text() == "other"
    first.unlink()
    eventually(lambda: not shadowed(bus))


def test_what_somebody_does_to_the_list_is_seen_long_before_the_next_resync(
    bus: Bus, path: Path, start: Start
) -> None:
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    start(resync_period=300.0)
    eventually(lambda: subnets(path) == [CIDR])
    path.write_text("garbage")
    eventually(lambda: "not JSON" in failing(bus).get("conflist", ""), what="named")
    path.unlink()
    eventually(lambda: subnets(path) == [CIDR], what="made again")
    eventually(lambda: not failing(bus), what="well again")


def test_nobody_is_fought_with(bus: Bus, path: Path, start: Start) -> None:
    """Somebody who changes the list again and again is answered at once, and then once in a resync."""
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    start(resync_period=300.0)
    eventually(lambda: subnets(path) == [CIDR])
    theirs = path.read_text().replace(CIDR, OTHER)
    path.write_text(theirs)
    eventually(lambda: subnets(path) == [CIDR])
    path.write_text(theirs)
    time.sleep(2.5 * LOOK_EVERY)
    assert subnets(path) == [OTHER]


def shadowed(bus: Bus) -> str:
    failing = state(bus).failing.get("shadowed")
    return failing.message if failing else ""


def test_switched_off_it_touches_nothing(bus: Bus, path: Path, start: Start) -> None:
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    start(cni=False)
    eventually(lambda: state(bus).phase == "ready")
    assert state(bus).info == {"cni": "off: --cni=false"}
    time.sleep(2 * RESYNC)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_list_outlives_the_worker(bus: Bus, path: Path, start: Start, number: int) -> None:
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    worker = start()
    eventually(lambda: subnets(path) == [CIDR])
    assert worker.end(number) == 0
    assert subnets(path) == [CIDR]


def test_killed_in_the_middle_of_a_write_it_cleans_up_at_the_next_start(
    bus: Bus, path: Path, start: Start
) -> None:
    leftover = path.parent / f".{path.name}.kilo-tmp"
    leftover.write_bytes(b"half a li")
    path.write_bytes(
        MANIFEST.replace(b'"host-local"', b'"host-local", "ranges": [[{"subnet": "%s"}]]' % CIDR.encode())
    )
    bus.put(CNI, cni=CniTarget(CIDR, 1420))
    start()
    eventually(lambda: not leftover.exists())
    eventually(lambda: state(bus).phase == "ready")
