"""The lab and the demo leave nothing behind, however they end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from tests.apiserver.real import find_assets
from tests.clock import Given, bound
from tests.lab import clean
from tests.lab.agents import KG, MODULE_PATH, REPOSITORY
from tests.lab.bench import Bench, Pace
from tests.lab.dataplane import parse_dump, parse_uapi, read_uapi
from tests.lab.host import HOLDER, Host, wait_until
from tests.lab.simulation import SimulatedNode


def holders(maker: int) -> list[str]:
    """The holders, of hosts that process ``maker`` made, that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"{HOLDER}:{maker}:" in command:
            found.append(command)
    return found


def demo(*flags: str, path: str = "") -> subprocess.Popen[str]:
    """``path``: where else it finds modules."""
    found = {name: f"{path}:{value}" for name, value in MODULE_PATH.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.lab.demo", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env=found | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED": "1"},
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_demo_once() -> None:
    process = demo("--once")
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 0, text
    assert "NO ANSWER" not in text
    assert text.count(" ms") == 12
    assert holders(process.pid) == []


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_demo_serves_pages_until_it_is_ended(end: signal.Signals) -> None:
    port = free_port()
    process = demo("--port", str(port))
    assert process.stdout
    try:
        kubectl = ""
        for line in process.stdout:
            if "kubectl" in line:
                kubectl = line
            if "Ctrl-C" in line:
                break
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/graph", timeout=90) as answer:
            assert b"<svg" in answer.read()
        assert holders(process.pid)
        if kubectl:
            command = kubectl.partition(": ")[2].split()
            done = subprocess.run(command, capture_output=True, text=True, timeout=90)
            assert (done.returncode, done.stdout.count("node/")) == (0, 4), done.stderr
        assert bool(kubectl) == (find_assets() is not None)
    finally:
        process.send_signal(end)
        process.stdout.close()
        process.wait(60)
    wait_until(lambda: not holders(process.pid), 5, "no host is left")
    clean.main()
    assert list(Path(tempfile.gettempdir()).glob(f"{clean.DIRECTORY_PREFIX}{process.pid}-*")) == []


def test_demo_is_interrupted_while_it_loads(tmp_path: Path) -> None:
    """Held up there by a module that it loads early: nothing is made yet, and nothing is said."""
    (tmp_path / "argparse.py").write_text("print('loading', flush=True)\nimport time\ntime.sleep(20)\n")
    process = demo(path=str(tmp_path))
    assert process.stdout and process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=10)
    assert (process.returncode, text) == (130, "")


TELLING = """
import os, sys
here = os.path.dirname(__file__)
open(here + "/reached", "w").close()
sys.path.remove(here)
del sys.modules["argparse"]
import argparse
"""
"""A module that the demo loads as soon as it obeys SIGINT: it says so, and makes way for the real one."""


@pytest.mark.timing
@pytest.mark.parametrize("after", [0.4, 1.2, 2.5, 5.0])
def test_demo_is_interrupted_at_once_and_says_so(after: float, tmp_path: Path) -> None:
    """Also while it waits for hosts. ``after``: seconds since it can be interrupted."""
    (tmp_path / "argparse.py").write_text(TELLING)
    process = demo("--port", str(free_port()), path=str(tmp_path))
    wait_until((tmp_path / "reached").exists, 20, "it loads its code")
    time.sleep(after)
    with Given() as clock:
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=90)
    assert process.returncode == (0 if "Ctrl-C ends the demo" in text else 130), text
    if text:  # it had loaded its code, and begun
        assert "\nstopping; removing everything\n" in text
        assert text.endswith("nothing is left\n")
    assert clock.seconds < bound(1.5), text
    assert list(Path(tempfile.gettempdir()).glob(f"{clean.DIRECTORY_PREFIX}{process.pid}-*")) == []
    wait_until(lambda: not holders(process.pid), 5, "no host is left; one that was being made ends by itself")


def test_both_ways_to_read_wireguard_agree(logs: Path) -> None:
    node = SimulatedNode(1)
    host = Host("alone", logs)
    try:
        host.start_wireguard_go("kilo0")
        peer = ["peer", node.key, "endpoint", node.endpoint(), "allowed-ips", ",".join(node.networks)]
        host.run("wg", "set", "kilo0", *peer, "persistent-keepalive", "7")
        peers = parse_uapi(read_uapi(host))
        assert peers == parse_dump(host.run("wg", "show", "kilo0", "dump"))
    finally:
        host.close()
    assert peers[node.key].allowed_ips == set(node.networks)
    assert (peers[node.key].endpoint, peers[node.key].keepalive) == (node.endpoint(), 7)


def test_benchmark() -> None:
    """In short: that it measures what it says, not how fast anything is."""
    result = Bench(20, 4000, KG, print, Pace(changes=2, settle=1, between=0.1, rest=3)).run([])
    assert 0 < result["start_seconds"] < 30
    assert 0 < result["change_seconds"]["median"] <= result["change_seconds"]["max"]
    minute = result["minute"]
    assert minute["cpu_seconds"] >= 0
    assert minute["forks"] == 0 or "forks_unknown" in minute
    assert result["memory_mb"]["rss"] > result["memory_mb"]["pss"] > result["memory_mb"]["uss"] > 0


def test_simulated_nodes_share_nothing() -> None:
    nodes = [SimulatedNode(number) for number in range(6000)]
    for values in (
        [n.pod_cidr for n in nodes],
        [n.internal_ip for n in nodes],
        [n.wireguard_ip for n in nodes],
    ):
        assert len(set(values)) == len(nodes)
    assert len({n.endpoint() for n in nodes}) == len({n.key for n in nodes}) == len(nodes)
