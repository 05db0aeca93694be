"""Flows that have to follow the plan, with the worker as a process; entries are put in by hand."""

from __future__ import annotations

import subprocess

from kilo.model.plan import Firewall, PlanItem, Route, SetEntry
from tests.feeding import eventually
from tests.integration.netctl.hosts import ip
from tests.integration.netctl.worker_box import PLAN_3, Box
from tests.unit.netctl.plans import interface

KNOWN = [SetEntry("masquerade_from", "10.2.0.0/24"), SetEntry("no_masquerade_to", "10.64.0.0/14")]
MORE: list[PlanItem] = [Firewall(ipip_guard=False, forward=False), *KNOWN]
PLAN: dict[str, PlanItem] = PLAN_3 | {item.key: item for item in MORE}
FOLLOWERS: dict[str, PlanItem] = {
    item.key: Route(item.dst, "private", "10.1.0.99", onlink=True)
    for item in PLAN_3.values()
    if isinstance(item, Route)
}
"""The same routes on a node that does not lead: another of its location does."""


def conntrack(*arguments: str) -> str:
    done = subprocess.run(["conntrack", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def put(protocol: str, source: str, destination: str, *more: str) -> None:
    """An entry of the kernel's, as if such a flow had begun."""
    state = ("--state", "ESTABLISHED") if protocol == "tcp" else ()
    ports = ("--sport", "4000", "--dport", "80")
    conntrack("-I", "-p", protocol, "-s", source, "-d", destination, *ports, *state, "-t", "300", *more)


def sources() -> set[str]:
    """The sources of the flows that the kernel knows."""
    return {line.partition("src=")[2].split()[0] for line in conntrack("-L").splitlines()}


def test_a_node_that_leads_no_more_forgets_what_it_passed_on(box: Box) -> None:
    answered = ("-u", "SEEN_REPLY,ASSURED")
    box.plan(PLAN)
    with box.worker():
        box.applied()
        ip("link add bridge type veth peer name pod")
        ip("addr add 10.2.0.1/24 dev bridge")
        ip("link set bridge up")
        ip("link set pod up")
        put("tcp", "10.64.1.5", "10.64.2.5", *answered)
        put("tcp", "10.2.0.5", "10.64.2.5", *answered)
        put("tcp", "10.1.0.10", "10.64.2.5", *answered)
        put("udp", "10.64.1.6", "10.64.2.5", *answered)
        put("tcp", "10.4.0.1", "10.64.2.5", *answered)
        put("udp", "10.2.0.7", "203.0.113.1", *answered)
        assert len(sources()) == 6
        follower = interface(address="", up=False)
        box.plan({"interface": follower, **FOLLOWERS})
        eventually(lambda: "10.64.1.5" not in sources() and "10.4.0.1" not in sources())
        assert sources() == {"10.2.0.5", "10.1.0.10", "10.64.1.6", "10.2.0.7"}
        put("tcp", "10.64.1.5", "10.64.2.5", *answered)
        box.plan({"interface": interface(), **{k: i for k, i in PLAN.items() if isinstance(i, Route)}})
        eventually(lambda: "10.64.1.5" not in sources())
        assert sources() == {"10.2.0.5", "10.1.0.10", "10.64.1.6", "10.2.0.7"}
        assert eventually(lambda: box.state().gauges["flows_deleted_total"] == 3)


def test_a_flow_that_began_before_its_destination_was_known(box: Box) -> None:
    box.plan(PLAN)
    with box.worker():
        box.applied()
        put("udp", "10.2.0.5", "10.99.0.5", "--src-nat", "10.1.0.10")
        put("udp", "10.2.0.6", "10.98.0.5", "--src-nat", "10.1.0.10")
        new = SetEntry("no_masquerade_to", "10.99.0.0/16")
        box.plan({new.key: new})
        eventually(lambda: "10.2.0.5" not in sources())
        assert sources() == {"10.2.0.6"}


def test_a_start_that_changes_nothing_touches_no_flow(box: Box) -> None:
    """Even one that the rules would treat otherwise: somebody may have exempted it."""
    box.plan(PLAN)
    with box.worker(clean_up=False):
        box.applied()
    put("udp", "10.2.0.5", "203.0.113.5")
    with box.worker() as running:
        box.applied(running.process.pid)
        assert sources() == {"10.2.0.5"}
