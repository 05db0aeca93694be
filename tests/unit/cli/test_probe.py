"""The liveness probe, against a real outlet: what answers, and what does not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.bus import WORKERS, state_of
from kilo.bus.wire import socket_path
from kilo.cli import probe
from tests.feeding import Bus
from tests.unit.health.samples import state


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def bus(run_dir: Path) -> Iterator[Bus]:
    bus = Bus(run_dir)
    yield bus
    bus.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PATIENCE", 0.5)


def test_it_knows_the_workers_and_where_they_are() -> None:
    """It imports nothing of kilo, so what it repeats is compared here."""
    assert probe.WORKERS == WORKERS
    assert socket_path("/run/kilo", "mesh") == Path("/run/kilo/mesh/bus.sock")


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_whose_loop_turns_answers(bus: Bus, run_dir: Path, worker: str) -> None:
    bus.put(state_of(worker), state=state(worker))
    assert probe.main([worker, str(run_dir)]) == probe.ALIVE


def test_a_state_of_many_kilobytes_is_read(bus: Bus, run_dir: Path) -> None:
    bus.put(state_of("mesh"), state=state("mesh", info={str(n): "x" * 100 for n in range(1000)}))
    for _ in range(20):
        assert probe.main(["mesh", str(run_dir)]) == probe.ALIVE


@pytest.mark.usefixtures("impatient")
def test_a_worker_whose_loop_stands_still_does_not(
    bus: Bus, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bus.put(state_of("mesh"), state=state("mesh"))
    stands, go_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        stands.set()
        go_on.wait()

    bus.loop.post(stand_still)
    try:
        assert stands.wait(20)
        assert probe.main(["mesh", str(run_dir)]) == probe.SILENT
    finally:
        go_on.set()
    assert "mesh does not answer" in capsys.readouterr().err


def test_a_worker_that_is_not_there_does_not(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["netctl", str(run_dir)]) == probe.SILENT
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 200, bytes(200)])
def test_something_else_on_the_socket_does_not(run_dir: Path, answer: bytes) -> None:
    (run_dir / "cni").mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(run_dir / "cni/bus.sock"))
        other.listen()
        prober = subprocess.Popen(
            [sys.executable, "-m", "kilo.cli.probe", "cni", str(run_dir)], stderr=subprocess.PIPE
        )
        with other.accept()[0] as asked:
            asked.sendall(answer)
            asked.shutdown(socket.SHUT_WR)
            _, said = prober.communicate(timeout=90)
    assert prober.returncode == probe.SILENT
    assert said.startswith(b"cni does not answer"), said
    assert said.count(b"\n") == 1, said


@pytest.mark.parametrize("arguments", [[], ["nobody"], ["mesh", "/run/kilo", "more"]])
def test_it_says_how_it_is_used(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(arguments) == probe.USAGE_ERROR
    assert capsys.readouterr().err.startswith("Usage: ")


def test_as_a_program_it_finds_a_real_worker_and_imports_no_library(run_dir: Path) -> None:
    environment = {**os.environ, "KILO_RUN_DIR": str(run_dir)}
    worker = subprocess.Popen(
        [sys.executable, "-m", "kilo", "mesh"], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        ask = [sys.executable, "-X", "importtime", "-m", "kilo.cli.probe", "mesh"]
        for _ in range(100):
            done = subprocess.run(ask, env=environment, capture_output=True, text=True, check=False)
            if done.returncode == probe.ALIVE:
                break
            time.sleep(0.1)
        assert done.returncode == probe.ALIVE, done.stderr.splitlines()[-1]
        assert "msgspec" not in done.stderr
        assert "zmq" not in done.stderr
        os.kill(worker.pid, signal.SIGSTOP)
        stopped = subprocess.run(ask, env=environment, capture_output=True, check=False)
        assert stopped.returncode == probe.SILENT
    finally:
        worker.kill()
        worker.wait()
