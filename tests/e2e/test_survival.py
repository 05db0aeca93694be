"""A full mesh of four hosts: pods go on talking whatever dies beside the data plane."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kilo.model.workers import WORKERS
from tests.e2e.observe import all_know, allowed_by_key, no_ping_lost
from tests.lab.dataplane import routes
from tests.lab.host import wait_until
from tests.lab.mesh import Mesh, NodeSpec
from tests.lab.underlay import API_ADDRESS

OUTAGE_SECONDS = 150
"""Longer than the two minutes after which any timer of minutes would have struck."""
NEWS_SECONDS = 60
"""How long after an outage news may take: connections that hang must be found out first."""
THIEF = "dGhpcyBwZWVyIGlzIG5vdCB0aGVyZSBhbmQgbGllcyE="
KEY = "Zm9yIHRlc3RzIG9ubHksIGJvcm4gaW4gb3V0YWdlISE="


@pytest.fixture(scope="module")
def mesh(logs: Path) -> Iterator[Mesh]:
    specs = [
        NodeSpec("ada", "berlin"),
        NodeSpec("bob", "berlin"),
        NodeSpec("cleo", "lisbon"),
        NodeSpec("dan", "oslo"),
    ]
    with Mesh(specs, logs, ["--encapsulate=never", "--mesh-granularity=full"], print) as made:
        made.converge(60)
        yield made


def test_every_pod_reaches_every_other(mesh: Mesh) -> None:
    assert mesh.unanswered() == []
    assert {len(allowed_by_key(m.host)) for m in mesh} == {3}


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_is_killed(mesh: Mesh, worker: str) -> None:
    ada, bob, cleo = mesh["ada"], mesh["bob"], mesh["cleo"]
    before = allowed_by_key(ada.host)
    with no_ping_lost((ada, bob), (cleo, ada)):
        killed = ada.agent.kill_worker(worker)
        ada.agent.await_worker(worker, other_than=killed)
        time.sleep(2)
    assert allowed_by_key(ada.host) == before
    assert ada.agent.running


def test_the_parent_is_killed(mesh: Mesh) -> None:
    """The workers end by themselves, the data plane stays, and the next start takes it over."""
    cleo, dan = mesh["cleo"], mesh["dan"]
    before = allowed_by_key(dan.host)
    with no_ping_lost((dan, cleo), (cleo, dan)):
        assert dan.agent.process
        dan.agent.process.kill()
        wait_until(lambda: not dan.agent.processes(), 15, "the workers of a killed parent end")
        time.sleep(1)
        dan.agent.start()
        for worker in WORKERS:
            dan.agent.await_worker(worker)
        time.sleep(2)
    assert allowed_by_key(dan.host) == before


@contextmanager
def api_out_of_reach(mesh: Mesh) -> Iterator[None]:
    """Packets to the API server vanish, without a word to who sent them."""
    mesh.underlay.internet.ip(f"route add blackhole {API_ADDRESS}/32")
    try:
        yield
    finally:
        mesh.underlay.internet.ip(f"route del blackhole {API_ADDRESS}/32")


@pytest.mark.timeout(OUTAGE_SECONDS + NEWS_SECONDS + 60)
def test_the_api_goes_away(mesh: Mesh) -> None:
    """Nothing is lost meanwhile, not even when a watcher restarts into the outage; then news arrives.

    Those who start at its very end find everybody's last-seen too old, and drop nobody for that.
    """
    peers = {m.name: allowed_by_key(m.host) for m in mesh}
    networks = {m.name: set(routes(m.host)) for m in mesh}
    pairs = [(mesh["ada"], mesh["cleo"]), (mesh["dan"], mesh["ada"]), (mesh["cleo"], mesh["bob"])]
    with no_ping_lost(*pairs):
        with api_out_of_reach(mesh):
            begun = time.monotonic()
            time.sleep(OUTAGE_SECONDS / 3)
            mesh["dan"].agent.kill_worker("watcher")
            mesh.cluster.create_peer("news", publicKey=KEY, allowedIPs=["10.5.0.4/32"], persistentKeepalive=0)
            while time.monotonic() - begun < OUTAGE_SECONDS:
                assert {m.name: allowed_by_key(m.host) for m in mesh} == peers
                assert all(networks[m.name] <= routes(m.host).keys() for m in mesh)
                time.sleep(2)
            killed = mesh["ada"].agent.kill_worker("watcher")
            mesh["cleo"].agent.kill_all()
        mesh["cleo"].agent.start()
        mesh["ada"].agent.await_worker("watcher", other_than=killed)
        took = wait_until(
            lambda: all_know(mesh, "10.5.0.4/32"), NEWS_SECONDS, "what changed in the outage has arrived"
        )
        print(f"the change arrived everywhere {took:.1f} s after the outage")
        time.sleep(5)
    assert all(networks[m.name] <= routes(m.host).keys() for m in mesh)
    after = {m.name: {k: v for k, v in allowed_by_key(m.host).items() if k != KEY} for m in mesh}
    assert after == peers


def test_nobody_moves_the_way_to_the_api_or_to_another_into_the_tunnel(mesh: Mesh) -> None:
    """A Peer that never was there claims both; its end is heard of, since the API is still in reach."""
    dan = mesh["dan"]
    endpoint = mesh.cluster.annotations("dan")["endpoint"].rpartition(":")[0]
    claims = [f"{API_ADDRESS}/32", f"{endpoint}/32", "10.5.0.9/32"]
    others = [m for m in mesh if m is not dan]
    with no_ping_lost((mesh["ada"], dan), (dan, mesh["cleo"])):
        mesh.cluster.create_peer("thief", publicKey=THIEF, allowedIPs=claims, persistentKeepalive=0)
        wait_until(lambda: all("10.5.0.9/32" in routes(m.host) for m in mesh), 20, "the Peer is known")
        time.sleep(12)
        for member in others:
            assert not {f"{API_ADDRESS}/32", f"{endpoint}/32"} & routes(member.host).keys()
        wait_until(lambda: all("does not answer" in m.agent.status() for m in others), 10, "it is said why")
        mesh.cluster.delete_peer("thief")
        wait_until(lambda: not any("10.5.0.9/32" in routes(m.host) for m in mesh), 20, "and it is forgotten")
    wait_until(
        lambda: not any("does not answer" in m.agent.status() for m in mesh), 10, "and no more is said of it"
    )
