"""``kg plan --diff`` beside running agents: what they have applied is no difference, what nobody mends is."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.host import wait_until
from tests.lab.mesh import Member, Mesh, NodeSpec

FLAGS = ["--encapsulate=never", "--mesh-granularity=location", "--iptables-forward-rules"]
NOTHING: dict[str, list[Any]] = {"differences": [], "notes": [], "unknown": []}


@pytest.fixture(scope="module")
def mesh(logs: Path) -> Iterator[Mesh]:
    specs = [NodeSpec("ada", "berlin"), NodeSpec("bob", "berlin"), NodeSpec("cleo", "lisbon")]
    with Mesh(specs, logs, FLAGS, print) as made:
        made.converge(60)
        yield made


def diff(member: Member, *flags: str) -> dict[str, list[Any]]:
    said = member.agent.ask("plan", "--diff", "-o=json", *flags)  # the rest it has from the agent
    told: dict[str, list[Any]] = json.loads(said)
    return told


def test_what_the_agents_have_applied(mesh: Mesh) -> None:
    wait_until(lambda: all(diff(member) == NOTHING for member in mesh), 20, "plans applied")


def test_what_nobody_mends(mesh: Mesh) -> None:
    cleo, bob = mesh["cleo"], mesh["bob"]
    pid = cleo.agent.worker("netctl")
    os.kill(pid, signal.SIGSTOP)
    try:
        cleo.host.ip(f"route del {bob.pod_cidr} proto 171")
        (difference,) = diff(cleo, "--firewall=nftables")["differences"]
        assert difference["sign"] == "+" and difference["kind"] == "route"
        assert difference["what"].startswith(f"{bob.pod_cidr} via 10.4.0.")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: diff(cleo) == NOTHING, 20, "the route is back")
