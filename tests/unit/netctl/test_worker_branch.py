"""Rule 7 on a real device: what carries the tunnel, or the way to the API, waits for a handshake."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.bus import HELD, HOST, Subscription
from kilo.model.host import HostFacts
from kilo.model.node import ApiServer
from kilo.model.plan import PlannedPeer, Route, route_key
from tests.feeding import Bus, eventually, running
from tests.unit.netctl.hosts import ip
from tests.unit.netctl.plans import interface, key
from tests.unit.netctl.worker_box import DESTINATIONS, PLAN_3, Box, Impatient


class Far:
    """A second WireGuard on the host that plays a peer."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        private = subprocess.run(["wg", "genkey"], check=True, capture_output=True, text=True).stdout
        self.public = subprocess.run(
            ["wg", "pubkey"], check=True, capture_output=True, text=True, input=private
        ).stdout.strip()
        self._key = directory / "far"
        self._key.write_text(private)
        self.program = subprocess.Popen(
            ["wireguard-go", "-f", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def know(self, public: str) -> None:
        """From now on answer the one with this key. Raises CalledProcessError until the device is there."""
        settings = f"listen-port 51999 private-key {self._key} peer {public} allowed-ips 10.4.0.1/32"
        subprocess.run(["wg", "set", self.name, *settings.split()], check=True, capture_output=True)
        ip(f"link set {self.name} up")

    def close(self) -> None:
        self.program.kill()
        self.program.wait()


@pytest.fixture
def far(box: Box, tmp_path: Path) -> Iterator[Far]:
    made = Far(f"{box.host.interface}b", tmp_path)
    yield made
    made.close()


def test_the_way_to_the_api_server_moves_into_a_tunnel_that_answers(box: Box, far: Far) -> None:
    peer = PlannedPeer(far.public, ("10.4.0.2/32", "198.51.100.0/24"), "127.0.0.1", 51999)
    other = PlannedPeer(key(2), ("10.64.2.0/24",), "198.51.100.9", 51820)
    items = [interface(), PLAN_3["summary"], ApiServer(("198.51.100.7",), True), peer, other]
    items += [Route("198.51.100.0/24", "wireguard"), Route("10.64.2.0/24", "wireguard")]
    with box.worker():
        box.plan({item.key: item for item in items})
        eventually(lambda: "10.64.2.0/24" in box.routes())
        waits = eventually(
            lambda: [f.message for f in box.state().failing.values() if "handshake" in f.message]
        )
        assert "the API server" in waits[0] and "198.51.100.0/24" in waits[0]
        time.sleep(2)
        assert box.routes() == {"10.64.2.0/24"}
        facts: HostFacts = eventually(lambda: box.follow(HOST).get("host"))
        far.know(facts.public_key)
        eventually(lambda: "198.51.100.0/24" in box.routes(), 15.0)
        eventually(lambda: not box.state().failing)
        box.plan({}, (ApiServer.KEY, other.key, route_key("10.64.2.0/24")))
        eventually(lambda: box.routes() == {"198.51.100.0/24"})


def test_what_an_earlier_run_left_is_told_before_there_is_a_plan(box: Box, tmp_path: Path) -> None:
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.whole()
        held = box.follow(HELD)
        expected = {route_key(d if "/" in d else f"{d}/32") for d in DESTINATIONS}
        eventually(lambda: held.keys() == expected)
        box.plan({}, (route_key("10.64.1.0/24"),))
        eventually(lambda: held.keys() == expected - {route_key("10.64.1.0/24")})
        worker.end(9)
    fresh = Bus(tmp_path / "fresh")
    try:
        with running("netctl", Impatient, box.config(run_dir=str(fresh.run_dir))):
            again: list[Subscription[bool]] = []
            fresh.on_loop(
                lambda: again.append(Subscription(fresh.loop, str(fresh.run_dir), HELD, lambda change: None))
            )
            eventually(lambda: again[0].complete)
            assert again[0].state.keys() == expected - {route_key("10.64.1.0/24")}
    finally:
        fresh.close()
