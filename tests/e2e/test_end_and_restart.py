"""What an agent leaves behind: nothing when it is told to end, and nothing stale after it was killed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.observe import allowed_by_key, configuration, left_over, no_ping_lost, peer_for
from tests.lab.host import wait_until
from tests.lab.mesh import Mesh, NodeSpec

STATE = ("links", "routes", "rules", "firewall", "sets", "nftables")
KEY = "Zm9yIHRlc3RzIG9ubHksIGRlbGV0ZWQgd2hpbGUgZG8="
OLD_SUBNET, NEW_SUBNET = "10.4.0.0/16", "10.9.0.0/16"


@pytest.fixture
def mesh(logs: Path) -> Iterator[Mesh]:
    specs = [
        NodeSpec("ada", "berlin", annotations={"persistent-keepalive": "20"}),
        NodeSpec("bob", "berlin"),
        NodeSpec("cleo", "lisbon", flags=["--clean-up-interface"]),
    ]
    with Mesh(specs, logs, ["--encapsulate=never", "--mesh-granularity=location"], print) as made:
        made.converge(60)
        yield made


def test_sigterm_leaves_nothing(mesh: Mesh) -> None:
    assert all(left_over(member, ("routes", "firewall")) for member in mesh), "there is something to leave"
    for member in mesh:
        assert member.agent.terminate() == 0
        wait_until(lambda m=member: not m.agent.processes(), 5, "all processes have ended")  # type: ignore[misc]
    for member in mesh:
        parts = left_over(member, STATE)
        links = " ".join(parts.pop("links", []))
        assert parts == {}
        assert ("kilo0" in links) == (member.name != "cleo"), "--clean-up-interface removes the interface"
    annotations = {m.name: mesh.cluster.annotations(m.name) for m in mesh}
    assert annotations == {"ada": {"persistent-keepalive": "20"}, "bob": {}, "cleo": {}}


def test_nothing_stale_after_kill_and_change_of_subnet(mesh: Mesh) -> None:
    mesh.cluster.create_peer("old", publicKey=KEY, allowedIPs=["10.5.0.5/32"], persistentKeepalive=0)
    wait_until(lambda: peer_for(mesh["cleo"], "10.5.0.5/32"), 20, "the peer is there")
    with no_ping_lost((mesh["ada"], mesh["cleo"]), (mesh["cleo"], mesh["bob"])):
        for member in mesh:
            member.agent.kill_all()
        time.sleep(2)
    mesh.cluster.delete_peer("old")

    for member in mesh:
        member.agent.flags.append(f"--subnet={NEW_SUBNET}")
        member.agent.start()
    old, new = OLD_SUBNET.removesuffix("0.0/16"), NEW_SUBNET.removesuffix("0.0/16")

    def settled() -> bool:
        lines = [line for m in mesh for part in configuration(m).values() for line in part]
        return mesh.routed() and any(new in line for line in lines) and not any(old in line for line in lines)

    wait_until(settled, 30, f"{NEW_SUBNET} is in place and nothing of {OLD_SUBNET} is left", 0.5)
    assert mesh.unanswered(20) == []
    for member in mesh:
        assert peer_for(member, "10.5.0.5/32") is None
        assert KEY not in allowed_by_key(member.host)
        assert "10.5.0.5" not in str(configuration(member))
    stood = configurations(mesh)
    start_with_nothing(mesh)
    end = time.monotonic() + 10
    while (fresh := configurations(mesh)) != stood and time.monotonic() < end:
        time.sleep(0.5)
    assert stood == fresh


def test_nothing_stale_after_kill_and_change_of_interface(mesh: Mesh) -> None:
    """The one before has the port and the addresses; the workers are restricted as they usually are."""
    ada = mesh["ada"]
    ada.agent.kill_all()
    ada.agent.flags.append("--interface=kilo1")
    ada.agent.start()

    def settled() -> bool:
        lines = [line for part in configuration(ada).values() for line in part]
        return mesh.routed() and any("dev kilo1" in line for line in lines)

    wait_until(settled, 30, "kilo1 is in the place of kilo0", 0.5)
    assert mesh.unanswered(20) == []
    assert ",UP" not in ada.host.run("ip", "-o", "link", "show", "kilo0")
    assert "10.4." not in ada.host.run("ip", "address", "show", "kilo0")


def configurations(mesh: Mesh) -> dict[str, dict[str, list[str]]]:
    """Without link-local addresses, which are random for each interface: cleo's is made again."""
    local = re.compile(r"fe80::[0-9a-f:]+")
    return {
        m.name: {
            part: [local.sub("fe80::", line) for line in lines] for part, lines in configuration(m).items()
        }
        for m in mesh
    }


def start_with_nothing(mesh: Mesh) -> None:
    """End the agents cleanly, and start them again."""
    for member in mesh:
        member.agent.terminate()
    for member in mesh:
        member.agent.start()
    wait_until(mesh.routed, 30, "every host has a route to every pod CIDR")
    assert mesh.unanswered(20) == []
