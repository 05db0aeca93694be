"""Rule 7 on a real device: what carries the tunnel, or the way to the API, waits for a handshake."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kilo.bus import HELD, HOST, WIREGUARD, Subscription
from kilo.model.host import HostFacts, WireGuardPeerState
from kilo.model.node import ApiServer
from kilo.model.plan import PlannedPeer, Route, route_key
from tests.feeding import Bus, eventually, running, within
from tests.integration.netctl.far_end import FarEnd
from tests.integration.netctl.worker_box import DESTINATIONS, PLAN_3, Box, Impatient
from tests.unit.netctl.plans import interface, key


def test_the_way_to_the_api_server_moves_into_a_tunnel_that_answers(box: Box, far: FarEnd) -> None:
    peer = PlannedPeer(far.public_key, ("10.4.0.2/32", "198.51.100.0/24"), "127.0.0.1", 51999)
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
        far.answer(facts.public_key, 51999)
        eventually(lambda: "198.51.100.0/24" in box.routes(), 15.0)
        eventually(lambda: not box.state().failing)
        box.plan({}, (ApiServer.KEY, other.key, route_key("10.64.2.0/24")))
        eventually(lambda: box.routes() == {"198.51.100.0/24"})


@pytest.mark.timing
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
            peers: list[Subscription[WireGuardPeerState]] = []
            fresh.on_loop(
                lambda: peers.append(
                    Subscription(fresh.loop, str(fresh.run_dir), WIREGUARD, lambda change: None)
                )
            )
            eventually(lambda: again[0].complete)
            assert again[0].state.keys() == expected - {route_key("10.64.1.0/24")}
            within(3.0, lambda: peers[0].complete)
            found = {(p.public_key, p.endpoint_ip, p.endpoint_port) for p in peers[0].state.values()}
            wanted = [item for item in PLAN_3.values() if isinstance(item, PlannedPeer)]
            assert found == {(p.public_key, p.endpoint_ip, p.endpoint_port) for p in wanted}
            networks = {p.public_key: p.allowed_ips for p in peers[0].state.values()}
            assert networks == {p.public_key: tuple(sorted(p.allowed_ips)) for p in wanted}
    finally:
        fresh.close()
