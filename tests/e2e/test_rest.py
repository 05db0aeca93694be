"""A mesh at rest, in which everybody checks in: nothing is changed on a host, and nothing is forked."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from operator import methodcaller
from pathlib import Path

from kilo.model.workers import WORKERS
from tests.e2e.observe import all_know, beside
from tests.lab.host import wait_until
from tests.lab.mesh import Mesh, NodeSpec
from tests.lab.simulation import SimulatedNode

NODES = 40
PERIOD = 5.0
"""Seconds between two check-ins of a node: six times as often as in use."""
SECONDS = 60.0
"""Of rest: six minutes' worth of check-ins, and twelve looks at the peers."""
FORKS = "clone,clone3,fork,vfork,execve"
CHANGES = re.compile(
    r"RTM_(?:NEW|DEL|SET)\w+|NFT_MSG_(?:NEW|DEL)\w+|BATCH_BEGIN|set=1|IPT_SO_SET_REPLACE|"
    + "|".join(f"{name}\\(" for name in FORKS.split(","))
)


@contextmanager
def checking_in(mesh: Mesh) -> Iterator[None]:
    """All simulated nodes check in meanwhile, evenly spread."""

    def work(done: threading.Event) -> None:
        for number in itertools.cycle(range(NODES)):
            if done.wait(PERIOD / NODES):
                return
            mesh.cluster.do(methodcaller("check_in", SimulatedNode(number).name))

    with beside(work):
        yield


@contextmanager
def traced(pid: int, trace: Path) -> Iterator[None]:
    """What the process and its threads send to the kernel, and whom they start, goes to ``trace``."""
    calls = f"trace=sendto,sendmsg,write,setsockopt,{FORKS}"
    command = ["strace", "-f", "-s", "512", "-e", calls, "-o", str(trace), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        strace.stderr.readline()  # it says that it has attached
        yield
        strace.send_signal(signal.SIGINT)


def test_check_ins_change_nothing_and_fork_nothing(logs: Path) -> None:
    specs = [NodeSpec("ada", "berlin"), NodeSpec("cleo", "lisbon")]
    with Mesh(specs, logs, ["--encapsulate=never", "--mesh-granularity=full"], print) as mesh:
        for node in map(SimulatedNode, range(NODES)):
            annotations = {f"kilo.squat.ai/{name}": value for name, value in node.annotations().items()}
            mesh.cluster.create_node(node.name, node.pod_cidr, {}, annotations)
        mesh.converge(60)
        wait_until(lambda: all_know(mesh, SimulatedNode(NODES - 1).pod_cidr), 20, "all nodes are known")
        ada, cleo = mesh["ada"], mesh["cleo"]
        with checking_in(mesh):
            time.sleep(PERIOD)
            pinger = ada.pinger(cleo.address, 0.2)
            with ExitStack() as stack:
                for worker in WORKERS:
                    stack.enter_context(traced(ada.agent.worker(worker), logs / worker))
                time.sleep(SECONDS)
            assert pinger.stop() == []
        said = {worker: (logs / worker).read_text() for worker in WORKERS}
        assert {w: Counter(CHANGES.findall(text)) for w, text in said.items()} == {w: {} for w in WORKERS}
        assert said["netctl"].count('"get=1') >= SECONDS / 5 - 1, "it did look"
