"""``kg status``, ``kg restart`` and ``kg tail``, as commands, against a bus with real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kilo.bus import PLAN, PROBLEMS, TOPOLOGY, WIREGUARD, WORKERS, Loop, Publisher, state_of
from kilo.bus.publisher import Outlet
from kilo.cli.operate import MISSED_AFTER
from kilo.model.host import Failure, WireGuardPeerState, WorkerState
from kilo.model.keys import PresharedKey
from kilo.model.node import Problem
from kilo.model.plan import PlannedPeer, Summary
from kilo.model.topology import PeerView, Segment
from tests.feeding import eventually

KEY = "CPHsDzA3Jg5Q/bO8jfktK4L4dJi9ikStdnl6+IfXTmY="
SECRET = "OGyrO4DSf1jfERo7PfJFrakIAjiaeM3ClJKodfdKxnM="


APPLIED = {"applied_generation": 7.0}


class Workers:
    """Outlets of the five that publish what a test says, from a thread of their own."""

    def __init__(self, run_dir: Path, names: Iterable[str] = WORKERS) -> None:
        self.loop = Loop()
        self.outlets = {name: Outlet(self.loop, str(run_dir), name) for name in names}
        self.states: dict[str, Publisher[WorkerState]] = {}
        for name, outlet in self.outlets.items():
            self.states[name] = outlet.publish(state_of(name))
            self.states[name].put(
                "state", WorkerState(name, 1000, time.time() - 90, "ready", 1, gauges=APPLIED)
            )
            self.states[name].flush()
        if "mesh" in self.outlets:
            self.plan = self.outlets["mesh"].publish(PLAN)
            self.plan.put("summary", Summary(7, "location:a", True, 4, 1, 3))
            self.plan.flush()
            self.topology = self.outlets["mesh"].publish(TOPOLOGY)
            self.topology.put("segment/location:a", Segment("location:a", ("n0", "n1"), (), (), 1, "", ""))
            self.topology.put("peer/laptop", PeerView("laptop", KEY))
            self.topology.flush()
        self.problems = self.outlets["watcher"].publish(PROBLEMS)
        self.problems.flush()
        self.peers = self.outlets["netctl"].publish(WIREGUARD)
        self.peers.put(KEY, WireGuardPeerState(KEY, last_handshake=int(time.time())))
        self.peers.flush()
        self.thread = threading.Thread(target=self.loop.run)

    def close(self) -> None:
        self.loop.stop()
        self.thread.join()
        self.loop.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(tmp_path)
    yield workers
    workers.close()


def kg(run_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kilo", *words, f"--run-dir={run_dir}", "--hostname=n1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_a_command_that_there_is_not(tmp_path: Path) -> None:
    done = kg(tmp_path, "statsu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown command 'statsu' (is kg status meant?); commands: " in done.stderr


def test_status_of_nothing(tmp_path: Path) -> None:
    done = kg(tmp_path, "status")
    assert done.returncode == 3
    assert "does not run here" in done.stdout


def test_status_of_workers_without_a_parent(workers: Workers, tmp_path: Path) -> None:
    info = {"firewall": "nftables: --firewall"}
    workers.states["netctl"].put(
        "state", WorkerState("netctl", 1000, time.time() - 90, "ready", 1, info=info, gauges=APPLIED)
    )
    workers.states["netctl"].flush()
    workers.thread.start()
    done = kg(tmp_path, "status")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("node n1: healthy\n")
    assert "no parent" in done.stdout
    assert "plan 7" in done.stdout
    assert "firewall: nftables: --firewall" in done.stdout
    assert "1 WireGuard peers: 1 with a handshake in the last 3 minutes, 0 that never" in done.stdout
    for name in WORKERS:
        assert f"{name} " in done.stdout


def test_status_says_what_is_wrong_and_since_when(workers: Workers, tmp_path: Path) -> None:
    failing = {"route 10.2.0.0/24": Failure("ENETUNREACH", int(time.time()) - 300)}
    state = WorkerState("netctl", 1000, time.time(), "ready", 1, failing=failing)
    workers.states["netctl"].put("state", state)
    workers.states["netctl"].flush()
    workers.problems.put("x", Problem("node", "n2", "endpoint", "malformed: 'x'", int(time.time()) - 10))
    workers.problems.flush()
    workers.thread.start()
    done = kg(tmp_path, "status")
    assert done.returncode == 1
    assert "node n1: DEGRADED" in done.stdout
    assert "netctl: route 10.2.0.0/24: ENETUNREACH (for 5m)" in done.stdout
    assert "node n2: endpoint: malformed: 'x' (for 1" in done.stdout


def test_what_a_worker_says_moves_no_cursor_and_makes_no_line(workers: Workers, tmp_path: Path) -> None:
    evil = {"x": Failure("\x1b[2J\nnode n1: healthy", int(time.time()))}
    state = WorkerState("mesh", 1000, time.time(), "ready", 1, failing=evil, info={"firewall": "a\x07"})
    workers.states["mesh"].put("state", state)
    workers.states["mesh"].flush()
    workers.thread.start()
    done = kg(tmp_path, "status")
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout
    assert r"\x1b[2J\nnode n1: healthy" in done.stdout
    assert "node n1: healthy" not in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("gauges", "late", "said"),
    [
        ({}, None, "no plan is applied yet"),
        ({"applied_generation": 6.0, "planned_generation": 7.0}, 60, "plan 7 is not applied for 6"),
        ({"applied_generation": 6.0, "planned_generation": 7.0}, 1, ""),
    ],
)
def test_a_plan_that_is_not_applied_for_long_is_no_health(
    workers: Workers, tmp_path: Path, gauges: dict[str, float], late: float | None, said: str
) -> None:
    """It is judged as ``/ready`` does: a plan that has just come is no fault."""

    def say() -> None:
        since = {} if late is None else {"unapplied_since": time.time() - late}
        state = WorkerState("netctl", 1000, time.time(), "ready", 1, gauges=gauges | since)
        workers.states["netctl"].put("state", state)
        workers.states["netctl"].flush()

    say()
    workers.loop.call_every(0.5, say)  # it stays as late as it is, however long the command takes
    workers.thread.start()
    done = kg(tmp_path, "status")
    assert done.returncode == (1 if said else 0)
    assert (f"! netctl: {said}" if said else "healthy") in done.stdout


def test_what_stops_the_data_plane_is_a_reason(workers: Workers, tmp_path: Path) -> None:
    gauges = {**APPLIED, "unapplied_since": time.time() - 60}
    stopped = WorkerState(
        "netctl", 1000, time.time(), "ready", 1, gauges=gauges, info={"stopped": "kilo0: it does not answer"}
    )
    workers.states["netctl"].put("state", stopped)
    workers.states["netctl"].flush()
    workers.thread.start()
    done = kg(tmp_path, "status")
    assert done.returncode == 1
    assert "! netctl: kilo0: it does not answer" in done.stdout


@pytest.fixture
def few(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Workers]:
    """All but the worker that a test names."""
    workers = Workers(tmp_path, [name for name in WORKERS if name != request.param])
    workers.thread.start()
    yield workers
    workers.close()


@pytest.mark.parametrize("few", ["cni"], indirect=True)
def test_without_a_cni_worker_where_another_project_does_that(few: Workers, tmp_path: Path) -> None:
    done = kg(tmp_path, "status", "--cni=false")
    assert done.returncode == 0, done.stdout
    assert "cni" not in done.stdout
    done = kg(tmp_path, "status")
    assert done.returncode == 1
    assert "! cni: not heard" in done.stdout


@pytest.mark.parametrize("few", ["mesh"], indirect=True)
def test_what_is_applied_is_said_also_while_mesh_is_silent(few: Workers, tmp_path: Path) -> None:
    done = kg(tmp_path, "status")
    assert done.returncode == 1
    assert "plan unknown, as mesh is not heard; applied 7\n" in done.stdout


def test_status_as_json_has_all_that_the_text_has(workers: Workers, tmp_path: Path) -> None:
    now = int(time.time())
    failing = {"route 10.2.0.0/24": Failure("ENETUNREACH", now - 300)}
    state = WorkerState(
        "netctl", 1000, now - 60, "ready", 1, failing=failing, errors={"apply": 2}, resident_bytes=5 << 20
    )
    state.gauges.update(repairs_total=3.0, unapplied_since=now - 300.0)
    workers.states["netctl"].put("state", state)
    workers.states["netctl"].flush()
    workers.problems.put("x", Problem("node", "n2", "endpoint", "malformed", now - 10))
    workers.problems.flush()
    workers.thread.start()
    done = kg(tmp_path, "status", "-o", "json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["node"], told["running"], told["healthy"]) == ("n1", True, False)
    assert "netctl: route 10.2.0.0/24: ENETUNREACH (for 5m)" in told["reasons"]
    netctl = next(w for w in told["workers"] if w["worker"] == "netctl")
    assert {k: netctl[k] for k in ("state", "pid", "restarts", "memory_bytes", "errors")} == {
        "state": "ready",
        "pid": 1000,
        "restarts": None,
        "memory_bytes": 5 << 20,
        "errors": {"apply": 2},
    }
    assert 59 < netctl["uptime_seconds"] < 80
    assert netctl["failing"] == {"route 10.2.0.0/24": {"message": "ENETUNREACH", "since": now - 300}}
    assert [w["worker"] for w in told["workers"]] == list(WORKERS)
    assert told["plan"] == {
        "generation": 7,
        "applied": None,
        "location": "location:a",
        "leader": True,
        "leads": "n1",
        "internal_ip": None,
        "nodes": 4,
        "segments": 3,
        "peers": 1,
    }
    (peer,) = told["wireguard"]
    assert now - 5 <= peer.pop("last_handshake") <= now + 60
    assert peer == {"name": "laptop", "public_key": KEY, "endpoint": "", "received_bytes": 0, "sent_bytes": 0}
    assert told["kernel"] == {"repairs": 3, "cni_repairs": None, "drift_since": now - 300, "fights": 0}
    assert told["problems"] == [
        {"kind": "node", "name": "n2", "field": "endpoint", "reason": "malformed", "since": now - 10}
    ]


def test_status_of_nothing_as_json(tmp_path: Path) -> None:
    done = kg(tmp_path, "status", "-o=json")
    assert done.returncode == 3
    told = json.loads(done.stdout)
    assert (told["running"], told["healthy"], told["workers"]) == (False, False, [])
    assert "does not run here" in told["reasons"][0]


@pytest.mark.parametrize("command", ["status", "doctor", "version"])
def test_a_word_too_many_points_to_the_help_of_the_command(command: str, tmp_path: Path) -> None:
    done = kg(tmp_path, command, "extra")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"kg: 'extra' is not expected here; kg {command} --help says what is\n"


def test_a_reader_that_is_gone_is_no_traceback(tmp_path: Path) -> None:
    script = '"$0" -m kilo status --run-dir=$1 | true; echo ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, str(tmp_path)], capture_output=True, text=True, timeout=90
    )
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("words", [["status", "-o", "yaml"], ["-o", "json"], ["mesh", "-o", "json"]])
def test_an_output_that_there_is_not(words: list[str], tmp_path: Path) -> None:
    done = kg(tmp_path, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "-o" in done.stderr


def test_status_names_a_worker_that_is_not_heard(workers: Workers, tmp_path: Path) -> None:
    del workers.outlets["cni"]._publishers[b"cni.state"]
    workers.thread.start()
    done = kg(tmp_path, "status")
    assert done.returncode == 1
    assert "cni: not heard" in done.stdout


def test_tail_prints_state_and_changes_and_no_secret(workers: Workers, tmp_path: Path) -> None:
    peer = PlannedPeer(KEY, ("10.5.0.1/32",), preshared_key=PresharedKey(SECRET))
    workers.plan.put(peer.key, peer)
    workers.plan.flush()
    workers.thread.start()
    command = [sys.executable, "-m", "kilo", "tail", "mesh", f"--run-dir={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        deadline = threading.Timer(20, process.kill)
        deadline.start()
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        deadline.cancel()
        process.terminate()
        assert process.wait(60) == 0
    by_topic = {line["topic"]: line for line in lines}
    assert by_topic["plan"]["upserts"][peer.key]["preshared_key"] == "***"
    assert by_topic.keys() == {"plan", "mesh.state", "topology"}
    assert SECRET not in json.dumps(lines)


@contextmanager
def tailing(run_dir: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """``kg tail``, which does not outlive a test that fails."""
    command = [sys.executable, "-m", "kilo", "tail", *words, f"--run-dir={run_dir}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tail_says_that_nobody_answers_and_waits(tmp_path: Path, number: int) -> None:
    with tailing(tmp_path) as process:
        assert process.stderr is not None
        deadline = threading.Timer(60, process.kill)
        deadline.start()
        assert process.stderr.readline() == f"kg tail: nobody answers in {tmp_path}; waiting\n"
        deadline.cancel()
        assert process.poll() is None
        process.send_signal(number)
        assert (process.wait(60), process.stderr.read()) == (3, "")


@pytest.mark.parametrize("few", ["cni"], indirect=True)
def test_tail_says_who_does_not_answer(few: Workers, tmp_path: Path) -> None:
    with (
        tailing(tmp_path) as all_of_them,
        tailing(tmp_path, "cni") as one,
        tailing(tmp_path, "mesh") as other,
    ):
        assert other.stdout and all_of_them.stderr and one.stderr
        processes = (all_of_them, one, other)
        deadlines = [threading.Timer(40, process.kill) for process in processes]
        for deadline in deadlines:
            deadline.start()
        assert other.stdout.readline()
        heard = time.monotonic()
        lines = [all_of_them.stderr.readline(), one.stderr.readline(), ""]
        time.sleep(max(0.0, heard + MISSED_AFTER + 0.5 - time.monotonic()))
        said = []
        for process, line, deadline in zip(processes, lines, deadlines, strict=True):
            process.send_signal(signal.SIGINT)
            assert process.stderr
            said.append((line + process.stderr.read(), process.wait(60)))
            deadline.cancel()
    missed = f"kg tail: no answer from cni in {tmp_path}; waiting\n"
    assert said == [(missed, 0), (missed, 3), ("", 0)]


def test_restart_without_a_parent_says_so(tmp_path: Path) -> None:
    done = kg(tmp_path, "restart", "mesh")
    assert done.returncode == 3
    assert "neither a parent nor mesh answers" in done.stderr
    done = kg(tmp_path, "restart", "all")
    assert done.returncode == 3
    assert "no parent answers" in done.stderr
    assert kg(tmp_path, "loglevel", "debug").returncode == 3


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["loglevel"], "all, debug"),
        (["loglevel", "loud"], "'loud'"),
        (["loglevel", "info", "cook"], "'cook'"),
    ],
)
def test_a_level_or_worker_that_there_is_not(words: list[str], named: str, tmp_path: Path) -> None:
    done = kg(tmp_path, *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert named in done.stderr


def test_a_worker_without_a_parent_is_asked_to_end_and_waited_for(tmp_path: Path) -> None:
    """Here a shell keeps it, where a kubelet would. A parent that was killed has left its socket."""
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "run" / "control.sock"))
    keeper = 'while "$0" -m tests.integration.supervisor.toys "$1" "$2" mesh; do :; done'
    (tmp_path / "mesh").write_text("")
    command = ["sh", "-c", keeper, sys.executable, str(tmp_path / "run"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as kept:
        eventually(lambda: kg(tmp_path / "run", "restart", "mesh").returncode != 3)
        done = kg(tmp_path / "run", "restart", "mesh")
        os.killpg(kept.pid, signal.SIGKILL)
    assert done.returncode == 0, done.stderr
    assert "mesh is asked to end" in done.stdout
    assert "mesh is ready again after" in done.stdout
    notes = (tmp_path / "notes").read_text()
    assert "stopped clean_up=False" in notes and "clean_up=True" not in notes


@pytest.mark.parametrize(
    "words",
    [
        ["restart"],
        ["restart", "cook"],
        ["tail", "cook"],
        ["tail", "mesh", "cni"],
        ["loglevel", "mesh"],
        ["loglevel", "info", "mesh", "cni"],
    ],
)
def test_a_worker_that_there_is_not(words: list[str], tmp_path: Path) -> None:
    done = kg(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "mesh" in done.stderr
