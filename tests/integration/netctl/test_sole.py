"""One netctl for an interface in a network namespace."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kilo.errors import TemporaryError
from kilo.log import Logger
from kilo.netctl.sole import Claim, claimant, is_claimed
from tests.clock import Given, bound
from tests.feeding import eventually, running
from tests.integration.netctl.hosts import Host
from tests.integration.netctl.worker_box import PLAN_3, Box, Impatient

LOG = Logger("netctl", "none")


@pytest.mark.timing
def test_there_is_one_and_the_other_is_told_who(host: Host) -> None:
    first = Claim("kilo0", LOG)
    begun = time.monotonic()
    with (
        Given() as clock,
        pytest.raises(
            TemporaryError,
            match=rf"another netctl \(pid {os.getpid()}\) has the interface kilo0 in this network",
        ),
    ):
        Claim("kilo0", LOG, patience=0.2)
    assert time.monotonic() - begun >= 0.2
    assert clock.seconds < bound(1)
    Claim("kilo1", LOG).close()
    first.close()
    Claim("kilo0", LOG).close()


def test_claim_is_seen_in_its_namespace_while_it_is_held(host: Host) -> None:
    assert not is_claimed("kilo0") and claimant("kilo0") is None
    with contextlib.closing(Claim("kilo0", LOG)):
        assert is_claimed("kilo0") and not is_claimed("kilo") and not is_claimed("kilo00")
        found = claimant("kilo0")
        assert found is not None and found.pid == os.getpid()
        with contextlib.ExitStack() as callers:
            for _ in range(40):  # more than it lets wait: it cannot be asked any more
                caller = callers.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                caller.setblocking(False)
                with contextlib.suppress(OSError):
                    caller.connect("\0kilo/netctl/kilo0")
            assert is_claimed("kilo0")
        other = Host()
        try:
            assert not is_claimed("kilo0")
        finally:
            other.close()
    assert not is_claimed("kilo0")


def test_another_network_namespace_is_another_matter(host: Host) -> None:
    first = Claim("kilo0", LOG)
    other = Host()
    try:
        Claim("kilo0", LOG, patience=0).close()
    finally:
        other.close()
        first.close()


@pytest.mark.timing
def test_a_predecessor_that_ends_holds_up_no_longer_than_it_lives(host: Host) -> None:
    first = Claim("kilo0", LOG)
    closed: list[float] = []

    def close() -> None:
        closed.append(clock.seconds)
        first.close()

    closing = threading.Timer(0.3, close)
    with Given() as clock:
        closing.start()
        Claim("kilo0", LOG).close()
        claimed = clock.seconds
    closing.join()
    assert closed, "it waited for the first"
    assert closed[0] <= claimed < closed[0] + 0.3


def test_many_who_ask_are_let_go(host: Host) -> None:
    first = Claim("kilo0", LOG)
    for _ in range(50):
        with pytest.raises(TemporaryError, match=f"pid {os.getpid()}"):
            Claim("kilo0", LOG, patience=0)
        first.forget_callers()
    first.close()


def test_who_cannot_be_netctl_keeps_nobody_from_working(host: Host, tmp_path: Path) -> None:
    name = "\0kilo/netctl/kilo0"
    code = f"""import os, socket, time
os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.bind({name!r}); s.listen(); print(flush=True); time.sleep(99)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with (tmp_path / "log").open("w+b") as log:
            Claim("kilo0", Logger("netctl", fd=log.fileno())).close()
            log.seek(0)
            told = json.loads(log.read())
        process.kill()
    assert told["level"] == "warn" and (told["pid"], told["uid"]) == (process.pid, 65534)


def test_a_second_agent_with_a_run_dir_of_its_own_is_refused(box: Box, tmp_path: Path) -> None:
    with box.worker() as first:
        box.plan(PLAN_3)
        box.whole()
        with running("netctl", Impatient, box.config(run_dir=str(tmp_path / "other"))) as second:
            assert second.wait() == 1
            (said,) = [line for line in second.log if line["level"] == "error"]
            assert f"another netctl (pid {first.process.pid}) has the interface" in said["msg"]
            assert "whatever the --run-dir: end one of the two" in said["msg"] and "python" in said["msg"]
            assert "trace" not in said
        first.end(signal.SIGKILL)
        with running("netctl", Impatient, box.config(run_dir=str(tmp_path / "third"))) as third:
            eventually(lambda: any(line["msg"] == "ready" for line in third.log), 5.0)


def test_a_mark_is_not_passed_on_to_wireguard_go(box: Box) -> None:
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.whole()
        worker.end(signal.SIGKILL)
    assert len(box.host.programs()) == 1
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as mark:
        mark.bind(f"\0kilo/netctl/{box.host.interface}")
