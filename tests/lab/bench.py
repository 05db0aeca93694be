"""``make bench``: what one agent costs in a full mesh of simulated nodes, for any agent; prints JSON.

The agent is real, and so is its data plane; the other nodes are objects in the API, whose check-ins
a process of its own sends. Measured from outside: routes from a file of /proc, peers over the control
socket of WireGuard, costs from /proc. What measuring and simulating cost is in the result too.
"""

from __future__ import annotations

import argparse
import compileall
import json
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.agents import KG, MODULE_PATH, REPOSITORY, Agent, Program, other_program
from tests.lab.clean import directory
from tests.lab.dataplane import read_uapi, routes, wireguard_peers
from tests.lab.host import wait_until
from tests.lab.mesh import Mesh, NodeSpec
from tests.lab.needs import check_machine
from tests.lab.processes import Process, StartedProcesses, cpu_seconds, memory, read
from tests.lab.simulation import SimulatedNode

START_LIMIT = 900.0
CHANGE_LIMIT = 120.0
POLL_SECONDS = 0.05
POLL_CHANGE_SECONDS = 0.02


@dataclass(frozen=True)
class Pace:
    """How many changes are made, and how many seconds everything lasts: the pause before the changes
    and before the rest, the pause after each change, and the rest itself."""

    changes: int = 10
    settle: float = 10.0
    between: float = 1.0
    rest: float = 60.0


class Bench:
    """One run with ``nodes`` simulated nodes; ``note`` hears of progress."""

    def __init__(
        self,
        nodes: int,
        node_bytes: int,
        program: Program,
        note: Callable[[str], None],
        pace: Pace = Pace(),
    ) -> None:
        self.pace = pace
        self.nodes = [SimulatedNode(number) for number in range(nodes)]
        self.node_bytes = node_bytes
        self.program = program
        self.note = note
        self.result: dict[str, Any] = {"nodes": nodes, "node_bytes": node_bytes}

    def run(self, flags: Sequence[str]) -> dict[str, Any]:
        """Measure, and return everything as it will be printed."""
        with directory() as logs:
            spec = NodeSpec("bench", "bench", program=self.program)
            all_flags = ["--encapsulate=never", "--mesh-granularity=full", *flags]
            with Mesh([spec], Path(logs), all_flags) as mesh:
                self.mesh = mesh
                self.agent: Agent = mesh["bench"].agent
                self.result["agent"] = [*self.program.command, *self.agent.flags]
                self._fill()
                self._start()
                self._change()
                self._rest()
        return self.result

    def _fill(self) -> None:
        """Put the nodes into the API, and let them check in."""
        cluster = self.mesh.cluster
        for node in self.nodes:
            annotations = node.annotations()
            parts = node.object_parts(self.node_bytes)
            cluster.do(
                lambda admin, n=node, a=annotations, p=parts: admin.create_node(n.name, a, n.pod_cidr, **p)  # type: ignore[misc]
            )
        command = [sys.executable, "-m", "tests.lab.simulation", "--server", cluster.url]
        self.load = cluster.host.start([*command, "--nodes", str(len(self.nodes))], "load.log", MODULE_PATH)
        self.note(f"{len(self.nodes)} nodes are in the API, and check in")

    def _start(self) -> None:
        """From the start of the agent to the last peer and route."""
        host = self.agent.host
        networks = {network for node in self.nodes for network in node.networks}

        def whole() -> bool:
            """Peers are asked for only when all routes are there: that costs WireGuard something."""
            if not networks <= routes(host).keys():
                return False
            allowed = {key: peer.allowed_ips for key, peer in wireguard_peers(host).items()}
            return all(allowed.get(node.key, frozenset()).issuperset(node.networks) for node in self.nodes)

        if self.program.needs_interface:
            host.start_wireguard_go("kilo0")
        before = time.process_time()
        self.agent.start()
        self.started = StartedProcesses([self.agent.pid])
        took = wait_until(whole, START_LIMIT, "every peer and every route is there", POLL_SECONDS)
        self.result["start_seconds"] = round(took, 3)
        self.result["start_cpu_seconds"] = self._cpu()
        self.result["start_polling_cpu_seconds"] = round(time.process_time() - before, 3)
        self.note(f"whole data path after {took:.2f} s")

    def _change(self) -> None:
        """From the change of a node's endpoint to the peer's new endpoint in WireGuard."""
        time.sleep(self.pace.settle)
        host = self.agent.host
        before = time.process_time()
        times = []
        for change in range(1, self.pace.changes + 1):
            node = self.nodes[change * len(self.nodes) // (self.pace.changes + 1)]
            endpoint = node.endpoint(change)
            begun = time.monotonic()
            self.mesh.cluster.annotate(node.name, {"endpoint": endpoint})
            wait_until(
                lambda wanted=f"endpoint={endpoint}\n": wanted in read_uapi(host),  # type: ignore[misc]
                CHANGE_LIMIT,
                f"the new endpoint of {node.name} is in WireGuard",
                POLL_CHANGE_SECONDS,
            )
            times.append(time.monotonic() - begun)
            time.sleep(self.pace.between)
        self.result["change_seconds"] = {
            "median": round(statistics.median(times), 3),
            "max": round(max(times), 3),
        }
        self.result["change_polling_cpu_seconds"] = round(time.process_time() - before, 3)
        self.note(
            f"a changed node is applied after {statistics.median(times):.3f} s (median of {len(times)})"
        )

    def _rest(self) -> None:
        """A minute in which every node checks in twice, and the memory after it."""
        time.sleep(self.pace.settle)
        others = {"api": self.mesh.cluster.process.pid, "load": self.load.pid}
        before = self._costs(others)
        forks, threads = self.started.forks, self.started.threads
        programs = self.started.programs.copy()
        time.sleep(self.pace.rest)
        after = self._costs(others)
        self.started.stop()
        costs = {name: round(after[name] - before[name], 2) for name in after}
        self.result["minute"] = {"cpu_seconds": costs.pop("agent"), "others_cpu_seconds": costs}
        if self.started.unavailable:
            self.result["minute"]["forks"] = None
            self.result["minute"]["forks_unknown"] = self.started.unavailable
        else:
            self.result["minute"]["forks"] = self.started.forks - forks
            self.result["minute"]["threads"] = self.started.threads - threads
            self.result["minute"]["programs"] = dict((self.started.programs - programs).most_common(10))
        self.note(f"a minute at rest costs {self.result['minute']['cpu_seconds']} s of CPU")
        self._weigh()

    def _weigh(self) -> None:
        """The memory of the agent, in all and process by process, and that of wireguard-go."""
        processes = self.agent.processes()
        measured = {f"{p.name} {p.pid}": memory(p.pid) for p in processes}
        self.result["memory_mb"] = {
            kind: round(sum(m[kind] for m in measured.values()) / 1e6, 1) for kind in ("pss", "uss", "rss")
        }
        self.result["processes_mb"] = {
            name: {kind: round(value / 1e6, 1) for kind, value in m.items()} for name, m in measured.items()
        }
        self.result["wireguard_go_pss_mb"] = round(
            sum(memory(p.pid)["pss"] for p in self.agent.wireguard_go()) / 1e6, 1
        )
        self.note(f"the agent weighs {self.result['memory_mb']['pss']} MB")

    def _cpu(self) -> float:
        return round(cpu_seconds(self.agent.processes()), 2)

    def _costs(self, others: dict[str, int]) -> dict[str, float]:
        """CPU seconds so far of the agent, wireguard-go, and others by name, this process among them."""
        found: list[tuple[str, Process | None]] = [(name, read(pid)) for name, pid in others.items()]
        costs = {name: process.cpu for name, process in found if process}
        return costs | {
            "agent": cpu_seconds(self.agent.processes()),
            "wireguard_go": cpu_seconds(self.agent.wireguard_go()),
            "bench": time.process_time(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures one agent in a full mesh of simulated nodes.")
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--node-bytes", type=int, default=4000, help="size of each Node object, about")
    parser.add_argument(
        "--agent",
        type=shlex.split,
        help="command line of another agent with the same flags; wireguard-go is started for it",
    )
    parser.add_argument("flags", nargs="*", help="further flags for the agent, after --")
    options = parser.parse_args()
    check_machine()
    # As in an installation: compiling costs memory that is never given back, and where nothing may write what
    # was compiled (PYTHONDONTWRITEBYTECODE) every start would do it again.
    compileall.compile_dir(REPOSITORY / "kilo", quiet=1)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    started = time.monotonic()

    def note(text: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {text}", file=sys.stderr, flush=True)

    program = other_program(options.agent) if options.agent else KG
    result = Bench(options.nodes, options.node_bytes, program, note).run(options.flags)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
