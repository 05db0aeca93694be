"""``python -m tests.lab.chaos [--seconds N] [--seed N]``: faults in a random order, and what they cost.

Four hosts in a full mesh. Pings run every 20 ms between all pods, and while they do the agents, the
API and the kernel's objects are broken one after the other, a seeded order deciding what and where.
After each fault: how many pings were lost, the longest silence of a pair, and how long it took until
all was as before. At the end every host must look as after a fresh start. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.clean import directory
from tests.lab.demo import Progress
from tests.lab.faults import FAULTS, Fault, World
from tests.lab.host import wait_until
from tests.lab.mesh import Mesh, NodeSpec
from tests.lab.needs import check_machine
from tests.lab.ping import Loss, Pinger

SPECS = (
    NodeSpec("ada", "berlin"),
    NodeSpec("bob", "berlin"),
    NodeSpec("cleo", "lisbon"),
    NodeSpec("dan", "oslo", flags=("--firewall=legacy", "--resync-period=10s")),
)
FLAGS = ("--encapsulate=never", "--mesh-granularity=full")
GRACE = 1.0
"""Seconds that a ping has for its answer."""
PATIENCE = 60.0
INTERVAL = 0.02


@dataclass
class Result:
    """What one fault cost. ``repaired``: seconds, None if it was not within PATIENCE.

    ``lost``: by pair of pods; ``silence``: of the pair that had the longest, seconds.
    """

    fault: Fault
    victim: str
    repaired: float | None
    lost: dict[tuple[str, str], int] = field(default_factory=dict)
    silence: float = 0.0

    @property
    def faithful(self) -> bool:
        """Whether what the design promises for such a fault was kept."""
        in_time = self.repaired is not None and self.repaired <= self.fault.limit
        return in_time and (self.fault.costs or not self.lost)


class Pings:
    """Between all pods, all the time; ``since`` tells what was lost from a moment on."""

    def __init__(self, mesh: Mesh) -> None:
        names = [m.name for m in mesh]
        self._pingers: dict[tuple[str, str], Pinger] = {
            (a, b): mesh[a].pinger(mesh[b].address, INTERVAL) for a, b in itertools.permutations(names, 2)
        }

    def since(self, moment: float) -> tuple[dict[tuple[str, str], int], float]:
        """Lost pings by pair, of those sent after ``moment``, and the longest silence of any pair."""
        lost: dict[tuple[str, str], int] = {}
        longest = 0.0
        for pair, pinger in self._pingers.items():
            losses = [loss for loss in pinger.losses(GRACE) if loss.sent >= moment]
            if losses:
                lost[pair] = len(losses)
                longest = max(longest, longest_row(losses))
        return lost, longest

    def stop(self) -> int:
        """End; how many were sent."""
        for pinger in self._pingers.values():
            pinger.end()
        for pinger in self._pingers.values():
            pinger.stop(0)
        return sum(pinger.sent for pinger in self._pingers.values())


def longest_row(losses: Sequence[Loss]) -> float:
    """Seconds between the first and the last ping of the longest unbroken row of lost ones."""
    longest = 0.0
    first = previous = losses[0]
    for loss in losses:
        if loss.sequence > previous.sequence + 1:
            first = loss
        previous = loss
        longest = max(longest, loss.sent - first.sent + INTERVAL)
    return longest


def order(seed: int, only: str = "") -> Iterator[Fault]:
    """Every fault with ``only`` in its name in a random order, then all again in another one, for ever."""
    generator = random.Random(seed)
    faults = [fault for fault in FAULTS if only in fault.name]
    if not faults:
        raise ValueError(f"no fault has {only!r} in its name")
    while True:
        generator.shuffle(faults)
        yield from faults


def storm(mesh: Mesh, seconds: float, seed: int, say: Callable[[str], None], only: str = "") -> list[Result]:
    """Faults for ``seconds``, in a converged mesh, of those with ``only`` in their names; each once at
    least."""
    world = World(mesh, random.Random(seed))
    pings = Pings(mesh)
    results = []
    end = time.monotonic() + seconds
    try:
        once = sum(only in fault.name for fault in FAULTS)
        for number, fault in enumerate(order(seed, only)):
            if time.monotonic() >= end and number >= once:
                break
            results.append(one(world, pings, fault))
            say(row(results[-1]))
    finally:
        world.close()
        sent = pings.stop()
    say(f"{len(results)} faults, {sent} pings")
    return results


def one(world: World, pings: Pings, fault: Fault) -> Result:
    """Let one fault happen, and wait until all is as before."""
    victim = world.choose(fault.firewall)
    before = time.monotonic()
    whole = fault.strike(world, victim)
    struck = time.monotonic()
    repaired: float | None = None
    try:
        wait_until(whole, PATIENCE, f"{victim.name} is whole again after: {fault.name}")
        repaired = time.monotonic() - struck
    except TimeoutError:
        pass
    wait_until(world.healthy, PATIENCE, f"all agents are ready after: {fault.name}")
    time.sleep(GRACE + 0.5)
    lost, silence = pings.since(before)
    return Result(fault, victim.name, repaired, lost, silence)


def row(result: Result) -> str:
    """A result as a row of the table."""
    lost = sum(result.lost.values())
    silence = f"{result.silence:.2f} s" if lost else "-"
    repaired = "NOT REPAIRED" if result.repaired is None else f"{result.repaired:.2f} s"
    broken = "" if result.faithful else " **broken**"
    cells = [result.fault.name, result.fault.plane, result.victim, f"{lost}{broken}", silence, repaired]
    return "| " + " | ".join([*cells, f"{result.fault.limit:g} s"]) + " |"


def summary(results: Sequence[Result]) -> str:
    """The table of all faults: how often, and the worst of each."""
    lines = [
        "| fault | of | times | most pings lost | longest silence | slowest repair | limit |",
        "| " + "--- | " * 7,
    ]
    for fault in FAULTS:
        mine = [r for r in results if r.fault is fault]
        if not mine:
            continue
        lost = max(sum(r.lost.values()) for r in mine)
        silence = max(r.silence for r in mine)
        slowest = max(float("inf") if r.repaired is None else r.repaired for r in mine)
        cells = [fault.name, fault.plane, str(len(mine)), str(lost)]
        cells += [f"{silence:.2f} s" if lost else "-", f"{slowest:.2f} s", f"{fault.limit:g} s"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(mesh: Mesh, world: World) -> list[str]:
    """How the hosts differ from what a fresh start makes: each agent cleans up, and starts again."""
    before = {m.name: world.state(m) for m in mesh}
    for member in mesh:
        member.agent.terminate()
    for member in mesh:
        member.agent.start()
    wait_until(world.healthy, PATIENCE, "all agents are ready after a fresh start")
    mesh.converge(PATIENCE)
    found = []
    for member in mesh:
        fresh = world.state(member)
        for part, lines in fresh.items():
            old = before[member.name][part]
            found += [f"{member.name}: {part}: - {line}" for line in sorted(set(old) - set(lines))]
            found += [f"{member.name}: {part}: + {line}" for line in sorted(set(lines) - set(old))]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Breaks a mesh of four hosts in every way, at random.")
    parser.add_argument("--seconds", type=float, default=300, help="how long")
    parser.add_argument("--seed", type=int, default=1, help="of the order; the same seed, the same order")
    parser.add_argument("--fault", default="", help="only those with this in their names")
    options = parser.parse_args()
    check_machine()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    say = Progress()
    with directory() as logs, Mesh(SPECS, Path(logs), FLAGS, say) as mesh:
        mesh.converge(PATIENCE)
        results = storm(mesh, options.seconds, options.seed, say, options.fault)
        left = differences(mesh, World(mesh, random.Random(0)))
    print(f"\nSeed {options.seed}, {options.seconds:g} s\n\n{summary(results)}")
    print("\nDifferences from a fresh start:", *(left or ["none"]), sep="\n  ")
    return 0 if all(result.faithful for result in results) and not left else 1


if __name__ == "__main__":
    sys.exit(main())
