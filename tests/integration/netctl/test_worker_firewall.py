"""The firewall at the worker's end, with the worker as a process."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from pathlib import Path

import pytest

from kilo.model.plan import Firewall, PlanItem, PlannedPeer, Route, SetEntry
from kilo.netctl.firewall import reconciler
from kilo.netctl.firewall.choice import Kind
from kilo.worker import Context
from tests.feeding import eventually, running
from tests.integration.netctl.firewall.hosts import PROGRAMS, held
from tests.integration.netctl.hosts import ip
from tests.integration.netctl.worker_box import PLAN_3, Box, Impatient
from tests.unit.netctl.plans import key

MORE: list[PlanItem] = [
    Firewall(ipip_guard=False, forward=False),
    SetEntry("masquerade_from", "10.2.0.0/24"),
]
PLAN = PLAN_3 | {item.key: item for item in MORE}
MESHED = [SetEntry("no_masquerade_to", r.dst, r.dst) for r in PLAN_3.values() if isinstance(r, Route)]
WITH_MESHED: dict[str, PlanItem] = PLAN | {item.key: item for item in MESHED}
PODS_1 = "10.64.1.0/24"


class Brief(Impatient):
    """Does not wait for long at its end."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        reconciler.CLEAN_UP_PATIENCE = 0.3


def test_a_worker_that_could_not_remove_its_rules_does_not_end_well(box: Box, xtables_lock: Path) -> None:
    box.plan(PLAN)
    with running("netctl", Brief, box.config(firewall="legacy")) as worker:
        box.applied()
        with held(xtables_lock):
            assert worker.end() == 1
        (line,) = [line["msg"] for line in worker.log if line["msg"].startswith("not all was cleaned up")]
        assert f"another program holds {xtables_lock}" in line


def test_a_worker_that_had_to_wait_ends_well(box: Box, xtables_lock: Path) -> None:
    box.plan(PLAN)
    with box.worker(firewall="legacy") as worker, contextlib.ExitStack() as stack:
        box.applied()
        stack.enter_context(held(xtables_lock))
        ending = threading.Timer(1.0, stack.close)
        ending.start()
        assert worker.end() == 0
        ending.join()


@pytest.fixture(params=["legacy", "nftables"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return "legacy" if request.param == "legacy" else "nftables"


def run(*command: str) -> None:
    """As another program of this host."""
    subprocess.run(command, check=True)


def test_forward_that_drops_pods_is_failing_until_rules_accept_them(box: Box, kind: Kind) -> None:
    pods = Firewall(ipip_guard=False, forward=False, pods="10.2.0.0/24")
    program = PROGRAMS[kind][0]
    run(program, "-P", "FORWARD", "DROP")
    box.plan(PLAN | {pods.key: pods})
    # Nothing is heard of a change in a legacy table: it is seen at the next resync.
    with box.worker(firewall=kind, resync_period=0.5) as worker:
        failure = eventually(lambda: box.state().failing.get("forward"))
        assert "drops what pods send (from 10.2.0.0/24)" in failure.message
        assert "give --iptables-forward-rules, or accept it there" in failure.message
        assert [line for line in worker.log if line.get("failing") == "forward"]
        for side in ("-s", "-d"):
            run(program, "-I", "FORWARD", side, "10.2.0.0/24", "-j", "ACCEPT")
        eventually(lambda: "forward" not in box.state().failing)


def test_forward_with_rules_of_ours_does_not_fail(box: Box, kind: Kind) -> None:
    wanted: list[PlanItem] = [
        Firewall(ipip_guard=False, forward=True, pods="10.2.0.0/24"),
        SetEntry("forward_accept_from", "10.2.0.0/24"),
        SetEntry("forward_accept_to", "10.2.0.0/24"),
    ]
    run(PROGRAMS[kind][0], "-P", "FORWARD", "DROP")
    box.plan(PLAN | {item.key: item for item in wanted})
    with box.worker(firewall=kind) as worker:
        assert "forward" not in box.applied().failing
        assert not [line for line in worker.log if line.get("failing") == "forward"]


def not_masqueraded() -> set[str]:
    """The members of the set, as nft writes them."""
    done = subprocess.run(
        ["nft", "list", "set", "ip", "kilo", "no-masquerade-to"], capture_output=True, text=True
    )
    _, _, elements = done.stdout.partition("elements = {")
    return {element.strip() for element in elements.partition("}")[0].split(",") if element.strip()}


def test_route_that_the_kernel_refuses_has_its_pods_masqueraded_until_it_stands(box: Box) -> None:
    ip(f"route add unreachable {PODS_1}")
    box.plan(WITH_MESHED)
    with box.worker(firewall="nftables"):
        eventually(lambda: len(box.routes()) == 5 and len(not_masqueraded()) == 5)
        assert PODS_1 not in not_masqueraded()
        eventually(lambda: any("not ours is in its place" in f.message for f in box.state().failing.values()))
        ip(f"route del unreachable {PODS_1}")
        eventually(lambda: PODS_1 in not_masqueraded() and len(box.routes()) == 6)
        box.applied()


def test_route_that_is_withheld_for_want_of_a_handshake_has_its_network_masqueraded(box: Box) -> None:
    """The office holds the endpoint of node 1, and does not answer."""
    office = PlannedPeer(key(9), ("198.51.100.0/24",), "203.0.113.9", 51820, name="peer office")
    way = Route("198.51.100.0/24", "wireguard")
    items: list[PlanItem] = [office, way, SetEntry("no_masquerade_to", way.dst, way.dst)]
    box.plan(WITH_MESHED | {item.key: item for item in items})
    with box.worker(firewall="nftables"):
        eventually(lambda: any("peer office" in f.message for f in box.state().failing.values()))
        eventually(lambda: len(box.routes()) == 6 and len(not_masqueraded()) == 6)
        assert way.dst not in not_masqueraded()
        nodes = tuple(item.key for item in PLAN_3.values() if isinstance(item, PlannedPeer | Route))
        box.plan({}, (*nodes, *(entry.key for entry in MESHED)))
        eventually(lambda: box.routes() == {way.dst} and not_masqueraded() == {way.dst})


def test_peer_that_is_refused_has_no_route_and_its_pods_are_masqueraded(box: Box) -> None:
    bad = PlannedPeer(key(1), (PODS_1, "10.32.1.1/32"), "224.0.0.1", 51820, name="node n1")
    box.plan(WITH_MESHED | {bad.key: bad})
    with box.worker(firewall="nftables"):
        eventually(lambda: len(box.routes()) == 4 and len(not_masqueraded()) == 4)
        assert PODS_1 not in not_masqueraded() and PODS_1 not in box.routes()
        refused = eventually(lambda: box.state().failing.get(f"plan/{bad.key}"))
        assert "node n1: endpoint 224.0.0.1" in refused.message
        eventually(lambda: any("no peer has it" in f.message for f in box.state().failing.values()))
        assert "applied_generation" not in box.state().gauges, "the kernel is not as planned"
        box.plan({bad.key: PLAN_3[bad.key]})
        eventually(lambda: len(box.routes()) == 6 and len(not_masqueraded()) == 6)
        box.applied()
