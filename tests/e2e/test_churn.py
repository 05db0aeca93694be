"""Nodes join and leave while one host loses its data plane again and again: in the end all is as planned."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.observe import allowed_by_key, beside
from tests.lab.dataplane import routes
from tests.lab.host import wait_until
from tests.lab.mesh import Member, Mesh, NodeSpec
from tests.lab.simulation import SimulatedNode

pytestmark = pytest.mark.long

SECONDS = 30.0
NODES = 10
SEED = 20
"""Of the order of the blows; when each falls depends on the machine."""


def _signal_wireguard_go(member: Member, number: int) -> None:
    for process in member.agent.wireguard_go():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _stop_for_a_while(member: Member) -> None:
    _signal_wireguard_go(member, signal.SIGSTOP)
    time.sleep(1.5)
    _signal_wireguard_go(member, signal.SIGCONT)


def _kill_netctl(member: Member) -> None:
    if pid := member.agent.worker("netctl"):  # there is none while its parent waits before the next
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ip(command: str) -> Callable[[Member], None]:
    def run(member: Member) -> None:
        member.host.run("ip", *command.split(), check=False)

    return run


BLOWS: tuple[Callable[[Member], None], ...] = (
    lambda member: _signal_wireguard_go(member, signal.SIGKILL),
    _stop_for_a_while,
    _kill_netctl,
    _ip("link del kilo0"),
    _ip("link set kilo0 down"),
    _ip("addr flush dev kilo0"),
    _ip("route flush proto 171"),
)


@contextmanager
def coming_and_going(mesh: Mesh, present: set[SimulatedNode]) -> Iterator[None]:
    """Simulated nodes join and leave meanwhile; ``present`` holds those that are there."""
    nodes = [SimulatedNode(number) for number in range(NODES)]

    def work(done: threading.Event) -> None:
        while not done.wait(0.05):
            node = random.choice(nodes)
            if node in present:
                present.discard(node)
                mesh.cluster.delete_node(node.name)
            else:
                annotations = {f"kilo.squat.ai/{name}": value for name, value in node.annotations().items()}
                mesh.cluster.create_node(node.name, node.pod_cidr, {}, annotations)
                present.add(node)

    with beside(work):
        yield


@pytest.fixture(scope="module")
def mesh(logs: Path) -> Iterator[Mesh]:
    specs = [NodeSpec("ada", "berlin"), NodeSpec("bob", "berlin"), NodeSpec("cleo", "lisbon")]
    with Mesh(specs, logs, ["--encapsulate=never", "--mesh-granularity=full"], print) as made:
        made.converge(60)
        yield made


def test_a_host_whose_wireguard_stands_still_is_not_ready(mesh: Mesh) -> None:
    bob = mesh["bob"]

    def ready() -> str:
        return bob.host.run("curl", "-s", "-w", "%{http_code}", "http://127.0.0.1:1107/ready", check=False)

    wait_until(lambda: ready().endswith("200"), 10, "the host is ready")
    _signal_wireguard_go(bob, signal.SIGSTOP)
    try:
        wait_until(
            lambda: (said := ready()).endswith("503") and "does not answer" in said, 15, "it is noticed"
        )
        wait_until(
            lambda: "DEGRADED" in (said := bob.agent.status()) and "does not answer" in said, 10, "and said"
        )
    finally:
        _signal_wireguard_go(bob, signal.SIGCONT)
    wait_until(lambda: ready().endswith("200"), 10, "and its end too")


def test_whatever_happens_meanwhile_all_is_as_planned_in_the_end(mesh: Mesh) -> None:
    present: set[SimulatedNode] = set()
    blows = random.Random(SEED)
    ada = mesh["ada"]
    with coming_and_going(mesh, present):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            blows.choice(BLOWS)(ada)
            time.sleep(blows.uniform(0.1, 2.0))
    others = {mesh["bob"].pod_cidr, mesh["cleo"].pod_cidr}
    wanted = others | {node.pod_cidr for node in present}
    absent = {SimulatedNode(number).pod_cidr for number in range(NODES)} - wanted

    def whole() -> bool:
        allowed = frozenset[str]().union(*allowed_by_key(ada.host).values())
        set_up = wanted <= allowed and not absent & allowed
        return set_up and wanted <= routes(ada.host).keys() and not absent & routes(ada.host).keys()

    took = wait_until(whole, 75, "routes and peers are those of the nodes that are there")
    print(f"as planned {took:.1f} s after the last blow")
    wait_until(lambda: not mesh.unanswered(), 10, "every pod reaches every other")
    wait_until(lambda: "healthy" in ada.agent.status(), 10, "the agent says that it is well")
    assert not [line for line in ada.agent.log() if line.get("trace")], "nothing that nobody expected"
