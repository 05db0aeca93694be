"""netctl's worker alone on a kernel with WireGuard and IPIP: repairs, and what one changed node costs."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from kilo.model.plan import Firewall, PlanItem, PlannedPeer, Route, Rule, SetEntry, Tunnel
from tests.feeding import eventually
from tests.integration.netctl.hosts import Host, lines
from tests.integration.netctl.worker_box import OURS, Box
from tests.unit.netctl.plans import key, mesh, node
from tests.vm.conftest import FIGURE
from tests.vm.inside.test_tunnel import FALLBACK
from tests.vm.inside.trace import Trace

pytestmark = pytest.mark.long

SECONDS = 60.0
"""Patience: the worker alone takes some 10 s to start."""
REPAIR_SECONDS = 2.0
"""From the kernel's first event to its last: less than 0.2 s, unless others use the processor."""
LOOK_SECONDS = 10.0
"""The same for what is only seen by looking, which takes a second here."""
QUIET_SECONDS = 2
NFT = "NFNL_MSG_BATCH_BEGIN"
SMALL_BATCH = 200
"""Bytes: its beginning and end, and one element of a set."""
MANY = 1000
NEIGHBOUR, PODS = "10.1.0.11", "10.2.5.0/24"
ENCAPSULATION: tuple[PlanItem, ...] = (
    Tunnel("ipip", "10.2.0.1/32"),
    Route(PODS, "tunnel", NEIGHBOUR, "10.1.0.10", onlink=True),
    Route(f"{NEIGHBOUR}/32", "tunnel", NEIGHBOUR, "10.1.0.10", 1107, onlink=True),
    Rule(1107, src="10.2.0.0/24", dst=f"{NEIGHBOUR}/32"),
    Firewall(ipip_guard=True, forward=True),
    SetEntry("ipip_accept_from", f"{NEIGHBOUR}/32"),
)


@pytest.fixture
def own_tunnel() -> Iterator[None]:
    """New namespaces have no tunl0 of the kernel's, which nobody could delete."""
    before = FALLBACK.read_text()
    FALLBACK.write_text("2")
    try:
        yield
    finally:
        FALLBACK.write_text(before)


@pytest.fixture
def box(own_tunnel: None, host: Host, tmp_path: Path) -> Iterator[Box]:
    made = Box(host, tmp_path)
    try:
        yield made
    finally:
        made.bus.close()


def settled(box: Box, plan: Mapping[str, PlanItem]) -> None:
    """Wait until the kernel has the routes, rules and peers of ``plan``."""
    wanted = {item.dst.removesuffix("/32") for item in plan.values() if isinstance(item, Route)}
    peers = {item.public_key for item in plan.values() if isinstance(item, PlannedPeer)}
    rules = sum(isinstance(item, Rule) for item in plan.values())

    def done() -> bool:
        held = {line.split()[0] for line in lines("route show table all") if OURS in line}
        there = sum(line.startswith("1107:") for line in lines("rule"))
        return (held, there) == (wanted, rules) and box.peers().keys() == peers

    eventually(done, SECONDS, "the plan is applied")


class Monitor:
    """What the kernel says of links, addresses, routes and rules, with the time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with open(path, "wb") as output:
            command = ["ip", "-4", "-tshort", "monitor", "link", "address", "route", "rule"]
            self._process = subprocess.Popen(command, stdout=output)
        self._skip = 0
        time.sleep(0.5)

    def forget(self) -> None:
        """Begin anew."""
        self._skip = self._path.stat().st_size

    def seconds(self) -> float:
        """From the first event to the last; there is one, though it may be on its way."""
        said = eventually(lambda: self._path.read_bytes()[self._skip :].decode(), SECONDS, "an event is told")
        times = [datetime.fromisoformat(text) for text in re.findall(r"^\[(\S+)\]", said, re.MULTILINE)]
        return (max(times) - min(times)).total_seconds()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def monitor(host: Host, tmp_path: Path) -> Iterator[Monitor]:
    made = Monitor(tmp_path / "events")
    try:
        yield made
    finally:
        made.close()


def test_what_is_damaged_is_repaired_at_once(
    box: Box, monitor: Monitor, record_property: Callable[[str, object], None]
) -> None:
    name = box.host.interface
    plan = mesh(3)
    plan |= {item.key: item for item in ENCAPSULATION}
    looks = (
        ["ip", "-o", "-d", "link", "show", name],
        ["ip", "-o", "-4", "addr", "show", name],
        ["ip", "-o", "-d", "link", "show", "tunl0"],
        ["ip", "-o", "-4", "addr", "show", "tunl0"],
        ["ip", "route", "show", "table", "all", "proto", "171"],
        ["ip", "rule"],
        ["wg", "show", name, "allowed-ips"],
        ["wg", "show", name, "private-key"],
        ["nft", "list", "ruleset"],
    )

    def state() -> list[list[str]]:
        """What is there, with no order and without what a new device changes."""
        texts = [subprocess.run(look, capture_output=True, text=True).stdout for look in looks]
        return [sorted(re.sub(r"^\d+:", "", text, flags=re.MULTILINE).splitlines()) for text in texts]

    with box.worker() as worker:
        box.plan(plan)
        settled(box, plan)
        whole = state()
        assert all(whole), worker.log
        took = []
        for damage, limit in (
            (f"ip route del {PODS}", REPAIR_SECONDS),
            ("ip route flush table 1107", REPAIR_SECONDS),
            ("ip route flush proto 171", REPAIR_SECONDS),
            ("ip rule del pref 1107", REPAIR_SECONDS),
            ("ip addr flush dev tunl0", REPAIR_SECONDS),
            ("ip addr add 10.99.0.1/32 dev tunl0", REPAIR_SECONDS),
            ("ip link set tunl0 mtu 1300", REPAIR_SECONDS),
            ("ip link set tunl0 down", REPAIR_SECONDS),
            ("ip link del tunl0", REPAIR_SECONDS),
            (f"ip addr flush dev {name}", REPAIR_SECONDS),
            (f"ip link set {name} mtu 1300", REPAIR_SECONDS),
            (f"ip link set {name} down", REPAIR_SECONDS),
            (f"wg set {name} peer {key(2)} remove", LOOK_SECONDS),
            (f"wg set {name} peer {key(2)} allowed-ips 10.9.9.0/24", LOOK_SECONDS),
            (f"wg set {name} listen-port 51999 private-key /dev/null", LOOK_SECONDS),
            ("nft flush ruleset", LOOK_SECONDS),
            (f"ip link del {name}", REPAIR_SECONDS),
        ):
            monitor.forget()
            begun = time.monotonic()
            subprocess.run(damage.split(), check=True)
            eventually(lambda: state() == whole, SECONDS, damage)
            waited = time.monotonic() - begun
            events = monitor.seconds() if damage.startswith("ip") else waited
            took.append(f"{events:.2f} s after {damage.replace(name, 'kilo0').replace(key(2), 'KEY')}")
            assert events < limit, took
        assert [line for line in worker.log if line["msg"] == "repaired"]
    record_property(FIGURE, "as before " + ", ".join(took))


def test_one_changed_node_among_a_thousand(box: Box, tmp_path: Path) -> None:
    """One message to WireGuard, and the routes and set entries that changed."""
    plan = mesh(MANY)
    plan |= {item.key: item for item in ENCAPSULATION}
    pods = [f"10.{64 + (n >> 8)}.{n & 255}.0/24" for n in range(1, MANY + 1)]
    plan |= {entry.key: entry for entry in (SetEntry("no_masquerade_to", network) for network in pods)}
    (peer,) = [item for item in node(7) if isinstance(item, PlannedPeer)]
    old, new = peer.allowed_ips[0], "10.99.7.0/24"
    route = plan[f"route/0/{old}"]
    assert isinstance(route, Route)

    def state() -> str:
        shown = [["wg", "show", box.host.interface, "dump"], ["ip", "route"], ["nft", "list", "ruleset"]]
        return "".join(
            subprocess.run(look, check=True, capture_output=True, text=True).stdout for look in shown
        )

    with box.worker() as worker:
        box.plan(plan)
        settled(box, plan)
        eventually(lambda: state().count(pods[-1]) == 3, SECONDS, "the sets are full")

        pid = worker.process.pid
        assert pid
        trace = Trace(pid, tmp_path / "nothing")
        time.sleep(QUIET_SECONDS)
        assert trace.stop() == [], "nothing changes by itself"

        trace = Trace(pid, tmp_path / "endpoint")
        moved = msgspec.structs.replace(peer, endpoint_ip="198.51.100.99", endpoint_port=51999)
        box.plan({moved.key: moved})
        eventually(lambda: "198.51.100.99:51999" in state(), SECONDS, "the endpoint moved")
        time.sleep(QUIET_SECONDS)
        (sent,) = trace.stop()
        assert sent.kind == "wireguard" and sent.first == sent.all

        trace = Trace(pid, tmp_path / "pods")
        moved = msgspec.structs.replace(moved, allowed_ips=(new, *peer.allowed_ips[1:]))
        route = msgspec.structs.replace(route, dst=new)
        entry = SetEntry("no_masquerade_to", new)
        gone = (f"route/0/{old}", SetEntry("no_masquerade_to", old).key)
        box.plan({moved.key: moved, route.key: route, entry.key: entry}, gone)
        eventually(lambda: state().count(new) == 3 and old not in state(), SECONDS, "the pods moved")
        time.sleep(QUIET_SECONDS)
        messages = trace.stop()
        kinds = [sent.kind for sent in messages]
        assert kinds == [NFT, NFT, "RTM_DELROUTE", "RTM_NEWROUTE", "wireguard"]
        assert all(m.all < SMALL_BATCH if m.kind == NFT else m.first == m.all for m in messages)
