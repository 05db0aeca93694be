"""One mesh of kg and another agent, by hand: ``python -m tests.lab.mixed --agent '/path/of/kg --flag'``.

Every second host runs the other agent. The mesh comes up, a location splits and joins again, agents
of either kind end and come back as the other, and every pod must reach every other throughout.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from tests.lab.agents import KG, Agent, Program, other_program
from tests.lab.clean import directory
from tests.lab.dataplane import CONFLIST
from tests.lab.demo import Progress, matrix, show_failure
from tests.lab.mesh import LOCATION_LABEL, Mesh, NodeSpec
from tests.lab.needs import check_machine
from tests.lab.pods import conflist_template

PATIENCE = 60.0
SETTLE_SECONDS = 2.0


def specs(other: Program) -> list[NodeSpec]:
    """Two locations that each have both agents, and one host behind NAT."""
    keepalive = {"persistent-keepalive": "5"}
    return [
        NodeSpec("ada", "berlin", program=KG),
        NodeSpec("bob", "berlin", program=other),
        NodeSpec("cleo", "lisbon", program=other),
        NodeSpec("dan", "lisbon", program=KG),
        NodeSpec("eve", "home", nat=True, annotations=keepalive, program=other),
    ]


def exchange(mesh: Mesh, name: str, program: Program) -> None:
    """End the agent of a host, and start the other kind in its place."""
    member = mesh[name]
    member.agent.terminate()
    if not member.host.path(CONFLIST).exists():
        member.host.write(CONFLIST, conflist_template())
    member.spec = replace(member.spec, program=program)
    member.agent = Agent(member.host, program, member.agent.flags)
    member.agent.start()


def expect_all(mesh: Mesh, say: Progress, what: str) -> bool:
    """Say whether every pod reaches every other, after ``what``."""
    time.sleep(SETTLE_SECONDS)
    missing = mesh.unanswered(PATIENCE)
    say(f"{what}: {'every pod reaches every other' if not missing else f'NO ANSWER: {missing}'}")
    return not missing


def run(mesh: Mesh, other: Program, say: Progress) -> bool:
    mesh.converge(PATIENCE)
    print(*matrix(mesh)[0], sep="\n")
    good = [expect_all(mesh, say, "at the start")]
    for location in ("potsdam", "berlin"):
        mesh.cluster.label("bob", LOCATION_LABEL, location)
        good.append(expect_all(mesh, say, f"bob is in {location}"))
    for name, program in (("bob", KG), ("dan", other), ("bob", other), ("dan", KG)):
        exchange(mesh, name, program)
        kind = "kg" if program is KG else "the other agent"
        good.append(expect_all(mesh, say, f"{name} runs {kind}"))
    return all(good)


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs a mesh of kg and another agent.")
    parser.add_argument("--agent", type=shlex.split, required=True, help="command line of the other agent")
    options = parser.parse_args()
    check_machine()
    say = Progress()
    other = other_program(options.agent)
    with directory() as logs, Mesh(specs(other), Path(logs), progress=say) as mesh:
        try:
            return 0 if run(mesh, other, say) else 1
        except TimeoutError as e:
            say(str(e))
            show_failure(mesh, say)
            return 1


if __name__ == "__main__":
    sys.exit(main())
