"""What becomes of the node when the file of its private key is deleted."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from kilo.bus import HOST
from tests.feeding import Running, eventually
from tests.integration.netctl.hosts import ip, stopped
from tests.integration.netctl.worker_box import PLAN_3, Box


def key_file(box: Box) -> Path:
    return Path(box.config().state_dir) / "key"


def fails(box: Box, worker: Running) -> bool:
    """Whether this worker says that its interface does."""
    state = box.bus.state("netctl")
    return state is not None and state.pid == worker.process.pid and "interface" in state.failing


def shown(box: Box, what: str) -> str:
    """What wg shows of the interface."""
    command = ["wg", "show", box.host.interface, what]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_node_keeps_the_key_that_its_interface_has(box: Box) -> None:
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.whole()
        worker.end(signal.SIGKILL)
    file = key_file(box)
    had = file.read_text()
    assert shown(box, "private-key") == had
    file.unlink()
    with box.worker() as worker:
        box.applied(worker.process.pid)
        facts = box.follow(HOST)
        eventually(lambda: "host" in facts)
        assert facts["host"].public_key == shown(box, "public-key")
        assert shown(box, "private-key") == had == file.read_text()
        assert file.stat().st_mode & 0o7777 == 0o600
        (line,) = [line for line in worker.log if line.get("file") == str(file)]
        assert line["level"] == "warn" and "written again with the interface's key" in line["msg"]
        assert had not in str(worker.log)


def test_a_device_that_stands_still_is_waited_for(box: Box) -> None:
    """It has a key; another one would make another node of this one."""
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.whole()
        worker.end(signal.SIGKILL)
    key_file(box).unlink()
    with stopped(box.host.programs()[0]), box.worker() as worker:
        assert worker.wait() == 1
        assert any("does not answer" in text for text in worker.messages("error"))
    assert not key_file(box).exists()


def test_an_interface_that_is_not_wireguard_s_has_no_key_to_give(box: Box) -> None:
    ip(f"link add {box.host.interface} type veth peer name far")
    with box.worker() as worker:
        eventually(lambda: fails(box, worker))
    ip(f"link del {box.host.interface}")
    ip(f"tuntap add {box.host.interface} mode tun")
    key_file(box).unlink()
    with box.worker() as worker:
        eventually(lambda: fails(box, worker))
        assert key_file(box).exists()
