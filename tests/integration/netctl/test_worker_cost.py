"""What a change costs, counted in messages to the kernel and to wireguard-go: it follows the change, not
the size of the mesh."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kilo.model.plan import Firewall, PlanItem, PlannedPeer, Route, SetEntry, Summary
from tests.feeding import eventually
from tests.integration.netctl.worker_box import Box
from tests.unit.netctl.plans import key, mesh, node

NODES = 1000
FORKS = "clone,clone3,fork,vfork,execve"
CHANGES = re.compile(
    r"RTM_(?:NEW|DEL|SET)\w+|NFT_MSG_(?:NEW|DEL)\w+|BATCH_BEGIN|set=1|"
    + "|".join(f"{name}\\(" for name in FORKS.split(","))
)


def plan() -> dict[str, PlanItem]:
    """The plan of a leader of 1,000 other nodes, with a firewall."""
    pods = [item for n in range(1, NODES + 1) for item in node(n) if isinstance(item, PlannedPeer)]
    entries = [SetEntry("no_masquerade_to", peer.allowed_ips[0]) for peer in pods]
    items: list[PlanItem] = [Firewall(ipip_guard=True, forward=True), *entries]
    return {**mesh(NODES), **{item.key: item for item in items}}


def traced(pid: int, trace: Path, work: Callable[[], None]) -> Counter[str]:
    """Which changes the process asked for while ``work`` ran, and how often; and its forks."""
    command = ["strace", "-f", "-v", "-s", "512", "-e", f"trace=sendto,sendmsg,write,{FORKS}"]
    with subprocess.Popen([*command, "-o", str(trace), "-p", str(pid)], stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        strace.stderr.readline()  # it says that it has attached
        work()
        strace.send_signal(signal.SIGINT)
    return Counter(CHANGES.findall(trace.read_text()))


def test_one_node_of_a_thousand_that_changes(box: Box, tmp_path: Path) -> None:
    with box.worker() as worker:
        box.plan(plan())
        box.applied()
        pid, generation = worker.process.pid, 1
        assert pid is not None

        def changed(items: list[PlanItem], remove: tuple[str, ...] = ()) -> Counter[str]:
            nonlocal generation
            generation += 1
            summary = Summary(generation, "here", True, NODES + 1, 0, NODES + 1)

            def work() -> None:
                box.plan({item.key: item for item in (*items, summary)}, remove)
                eventually(lambda: box.state().gauges["applied_generation"] == generation)
                time.sleep(1.0)

            return traced(pid, tmp_path / "trace", work)

        peer = next(item for item in node(500) if isinstance(item, PlannedPeer))
        pods, *rest = peer.allowed_ips
        assert changed([PlannedPeer(peer.public_key, peer.allowed_ips, "198.51.100.251", 51820)]) == {
            "set=1": 1
        }
        moved = "10.99.0.0/24"
        cost = changed(
            [
                PlannedPeer(peer.public_key, (moved, *rest), "198.51.100.251", 51820),
                Route(moved, "wireguard", "10.4.1.245", "10.1.0.10", onlink=True),
                SetEntry("no_masquerade_to", moved),
            ],
            (f"route/0/{pods}", SetEntry("no_masquerade_to", pods).key),
        )
        assert cost == {
            "set=1": 1,
            "RTM_NEWROUTE": 1,
            "RTM_DELROUTE": 1,
            "NFT_MSG_NEWSETELEM": 1,
            "NFT_MSG_DELSETELEM": 1,
            "BATCH_BEGIN": 2,
        }
        assert box.peers()[key(500)] == {moved, *rest}
        assert changed([]) == {}, "nor does a plan that changes nothing cost anything"


def test_a_steady_state_changes_nothing_and_forks_nothing(box: Box, tmp_path: Path) -> None:
    """More than ten looks at everything: as many as in five minutes of use."""
    with box.worker(resync_period=0.2) as worker:
        box.plan(plan())
        box.applied()
        assert worker.process.pid is not None
        time.sleep(0.5)
        trace = tmp_path / "trace"

        def has_looked() -> bool:
            said = trace.read_text()
            return said.count("RTM_GETROUTE") > 10 and min(map(said.count, ('"get=1', "NFT_MSG_GETGEN"))) >= 3

        def watch() -> None:
            time.sleep(3)
            eventually(has_looked, 60.0, "more than ten looks")

        assert traced(worker.process.pid, trace, watch) == {}
