"""The worker as a process, fed with plans, on a host with the real wireguard-go."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilo.bus import HOST, PLAN, WIREGUARD, Subscription, Topic
from kilo.config import Config
from kilo.model.host import HostFacts, WorkerState
from kilo.model.plan import Firewall, PlanItem, PlannedPeer, Route, SetEntry
from kilo.netctl.netlink.messages import GROUP_LINK, GROUPS_ADDRESS, GROUPS_ROUTE, GROUPS_RULE
from kilo.netctl.worker import NetctlWorker
from tests.feeding import Bus, Running, eventually, running
from tests.unit.netctl.hosts import Host, ip, kernel_events, lines
from tests.unit.netctl.plans import interface, key, mesh, node

OURS = "proto 171"


class Impatient(NetctlWorker):
    """Looks at WireGuard's peers more often, for tests that wait for it."""

    poll_period = 0.3


class Box:
    """A host, the bus, and configurations for the worker."""

    def __init__(self, host: Host, tmp: Path) -> None:
        self.host, self._tmp = host, tmp
        host.wire()
        ip("route add default via 10.1.0.1")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self.bus = Bus(tmp / "run")
        self._followed: dict[str, Subscription[Any]] = {}

    def config(self, **flags: Any) -> Config:
        values: dict[str, Any] = {
            "interface": self.host.interface,
            "run_dir": str(self._tmp / "run"),
            "state_dir": str(self._tmp / "state"),
            "hostname": "localhost",
            "encapsulate": "never",
            "resync_period": 300.0,
        }
        return Config(**{**values, **flags})

    def worker(self, **flags: Any) -> contextlib.AbstractContextManager[Running]:
        return running("netctl", Impatient, self.config(**flags))

    def plan(self, items: dict[str, PlanItem], remove: tuple[str, ...] = ()) -> None:
        self.bus.update(PLAN, items, remove)

    def state(self) -> WorkerState:
        return eventually(lambda: self.bus.state("netctl"))

    def applied(self, pid: int | None = None) -> WorkerState:
        """The state of a worker (the process ``pid``) that has applied a whole plan."""

        def found() -> WorkerState | None:
            state = self.bus.state("netctl")
            done = state and "applied_generation" in state.gauges and (pid is None or state.pid == pid)
            return state if done else None

        return eventually(found, what="a plan applied")

    def whole(self) -> None:
        """Wait until the kernel has PLAN_3."""
        eventually(lambda: self.routes() == DESTINATIONS and len(self.peers()) == 3)

    def follow(self, topic: Topic[Any]) -> dict[str, Any]:
        """The state of a topic of netctl's."""
        if topic.name not in self._followed:

            def subscribe() -> None:
                self._followed[topic.name] = Subscription(
                    self.bus.loop, str(self.bus.run_dir), topic, lambda change: None
                )

            self.bus.on_loop(subscribe)
        return self._followed[topic.name].state

    def routes(self) -> set[str]:
        """The destinations of our routes."""
        return {line.split()[0] for line in lines("route") if OURS in line}

    def peers(self) -> dict[str, set[str]]:
        """Allowed IPs by public key, as wg prints them."""
        shown = subprocess.run(
            ["wg", "show", self.host.interface, "allowed-ips"], capture_output=True, text=True
        )
        return {line.split()[0]: set(line.split()[1:]) for line in shown.stdout.splitlines()}


@pytest.fixture
def box(host: Host, tmp_path: Path) -> Iterator[Box]:
    made = Box(host, tmp_path)
    try:
        yield made
    finally:
        made.bus.close()


PLAN_3 = mesh(3)
DESTINATIONS = {"10.64.1.0/24", "10.64.2.0/24", "10.64.3.0/24", "10.32.1.1", "10.32.2.1", "10.32.3.1"}


def test_a_plan_becomes_a_data_path_and_the_host_is_reported(box: Box) -> None:
    with box.worker():
        facts: HostFacts = eventually(lambda: box.follow(HOST).get("host"))
        assert facts.default_link == "eth0" and "127.0.0.1" in facts.hostname_ips
        assert box.routes() == set(), "no plan, no change"
        box.plan(PLAN_3)
        state = box.applied()
        assert box.routes() == DESTINATIONS
        assert box.peers() == {
            key(n): {f"10.64.{n}.0/24", f"10.32.{n}.1/32", f"10.4.0.{n + 1}/32"} for n in (1, 2, 3)
        }
        shown = ip(f"addr show {box.host.interface}")
        assert "mtu 1420" in shown and "inet 10.4.0.1/16" in shown
        assert state.phase == "ready" and state.failing == {}
        assert state.gauges["applied_generation"] == 1 and state.gauges["routes"] == 6
        assert state.gauges["wireguard_peers"] == 3 and state.gauges["repairs_total"] == 0
        assert state.info == {
            "wireguard": "userspace",
            "interface": box.host.interface,
            "firewall": "nftables: no chains KUBE-…, and the kernel has nftables",
        }
        public = subprocess.run(
            ["wg", "show", box.host.interface, "public-key"], check=True, capture_output=True, text=True
        ).stdout.strip()
        seen: HostFacts = eventually(lambda: (f := box.follow(HOST)["host"]).wireguard and f)
        assert seen.public_key == public and seen.wireguard == "userspace"
        assert [link.name for link in seen.links] == ["eth0", box.host.interface]


def test_one_changed_node_and_one_that_leaves(box: Box) -> None:
    with box.worker():
        box.plan(PLAN_3)
        box.whole()
        moved = PlannedPeer(key(2), ("10.64.2.0/24", "10.77.0.0/24"), "198.51.100.99", 51821)
        gone = tuple(item.key for item in node(3))
        box.plan({moved.key: moved, "route/0/10.77.0.0/24": Route("10.77.0.0/24", "wireguard")}, gone)
        eventually(lambda: key(3) not in box.peers() and "10.77.0.0/24" in box.routes())
        assert box.routes() == {"10.64.1.0/24", "10.32.1.1", "10.64.2.0/24", "10.32.2.1", "10.77.0.0/24"}
        assert box.peers()[key(2)] == {"10.64.2.0/24", "10.77.0.0/24"}


def test_after_kill_9_the_data_path_stands_and_the_next_run_touches_nothing(box: Box) -> None:
    with box.worker() as first:
        box.plan(PLAN_3)
        box.whole()
        first.end(signal.SIGKILL)
    programs = box.host.programs()
    before = (lines("route"), box.peers(), ip(f"addr show {box.host.interface}"))
    assert box.routes() == DESTINATIONS and len(programs) == 1
    with (
        kernel_events(GROUP_LINK, *GROUPS_ADDRESS, *GROUPS_ROUTE, *GROUPS_RULE) as heard,
        box.worker() as second,
    ):
        box.applied(second.process.pid)
        second.end(signal.SIGHUP)
    assert heard == []
    assert (lines("route"), box.peers(), ip(f"addr show {box.host.interface}")) == before
    assert box.host.programs() == programs


def test_a_restart_leaves_all_and_a_clean_end_leaves_nothing(box: Box) -> None:
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.whole()
        assert worker.end(signal.SIGHUP) == 0
    assert box.routes() == DESTINATIONS and len(box.peers()) == 3
    with box.worker() as worker:
        box.applied(worker.process.pid)
        assert worker.end(signal.SIGTERM) == 0
    assert box.routes() == set()
    assert "10.4.0.1" not in ip("addr") and len(box.host.programs()) == 1
    with box.worker(clean_up=False) as worker:
        box.applied(worker.process.pid)
        assert worker.end(signal.SIGTERM) == 0
    assert box.routes() == DESTINATIONS
    with box.worker(clean_up_interface=True) as worker:
        box.applied(worker.process.pid)
        assert worker.end(signal.SIGTERM) == 0
    assert box.host.interface not in ip("link") and box.routes() == set()


def test_what_is_stale_goes_once_the_plan_is_known_and_not_before(box: Box) -> None:
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.whole()
        worker.end(signal.SIGKILL)
    box.bus.close()
    box.bus = Bus(box.bus.run_dir)
    with box.worker(subnet="10.5.0.0/16") as worker:
        eventually(
            lambda: (s := box.bus.state("netctl")) and s.pid == worker.process.pid and s.phase == "ready"
        )
        time.sleep(0.3)
        assert box.routes() == DESTINATIONS and len(box.peers()) == 3
        assert "10.4.0.1/16" in ip("addr")
        one = PlannedPeer(key(1), ("10.64.1.0/24", "10.5.0.2/32"), "198.51.100.2", 51820)
        route = Route("10.64.1.0/24", "wireguard", "10.5.0.2", "10.1.0.10", onlink=True)
        box.plan(
            {
                "interface": interface(address="10.5.0.1/16", subnet="10.5.0.0/16"),
                one.key: one,
                route.key: route,
                "summary": PLAN_3["summary"],
            }
        )
        box.applied()
        assert [line for line in lines("route") if box.host.interface in line] == [
            f"10.5.0.0/16 dev {box.host.interface} proto kernel scope link src 10.5.0.1",
            f"10.64.1.0/24 via 10.5.0.2 dev {box.host.interface} {OURS} src 10.1.0.10 onlink",
        ]
        assert box.peers() == {key(1): {"10.64.1.0/24", "10.5.0.2/32"}}
        assert "10.4.0.1" not in ip("addr")


def test_what_is_damaged_is_repaired_at_once(box: Box) -> None:
    name = box.host.interface
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.whole()
        for damage, whole in (
            ("route del 10.64.1.0/24", lambda: box.routes() == DESTINATIONS),
            ("route flush proto 171", lambda: box.routes() == DESTINATIONS),
            (f"addr del 10.4.0.1/16 dev {name}", lambda: "10.4.0.1/16" in ip("addr")),
            (f"addr add 10.99.0.1/32 dev {name}", lambda: "10.99.0.1" not in ip("addr")),
            (f"link set {name} mtu 1300", lambda: "mtu 1420" in ip(f"link show {name}")),
            (
                f"link set {name} down",
                lambda: ",UP" in ip(f"link show {name}") and box.routes() == DESTINATIONS,
            ),
            (
                "addr del 10.1.0.10/24 dev eth0",
                lambda: not [x for x in lines("route") if "src 10.1.0.10" in x],
            ),
            ("addr add 10.1.0.10/24 dev eth0", lambda: box.routes() == DESTINATIONS),
        ):
            ip(damage)
            eventually(whole, 1.0, damage)
        assert [line for line in worker.log if line["msg"] == "repaired"]


def test_our_nftables_table_is_back_at_once(box: Box) -> None:
    def ruleset() -> str:
        return subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout

    items = (Firewall(ipip_guard=True, forward=True), SetEntry("no_masquerade_to", "10.64.1.0/24"))
    with box.worker() as worker:
        box.plan({**PLAN_3, **{item.key: item for item in items}})
        box.applied()
        whole = ruleset()
        assert "10.64.1.0/24" in whole
        for damage in ("flush ruleset", "flush set ip kilo no-masquerade-to", "flush chain ip6 kilo input"):
            subprocess.run(["nft", damage], check=True)
            eventually(lambda: ruleset() == whole, 1.0, damage)
        eventually(lambda: (s := box.state()).gauges["repairs_total"] >= 3 and not s.failing)
        assert [line for line in worker.log if line["msg"] == "repaired"]


def test_a_peer_that_was_removed_by_hand_is_back_after_the_next_look(box: Box) -> None:
    with box.worker():
        box.plan(PLAN_3)
        box.whole()
        subprocess.run(["wg", "set", box.host.interface, "peer", key(2), "remove"], check=True)
        assert key(2) not in box.peers()
        eventually(lambda: key(2) in box.peers(), 6.0)
        eventually(lambda: box.state().gauges["repairs_total"] == 1)


def test_when_wireguard_go_dies_all_comes_back(box: Box) -> None:
    with box.worker():
        box.plan(PLAN_3)
        box.whole()
        (pid,) = box.host.programs()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(box.peers()) == 3 and box.routes() == DESTINATIONS)
        (other,) = box.host.programs()
        assert other != pid
        assert "10.4.0.1/16" in ip("addr")


def test_without_its_device_nothing_counts_as_applied(box: Box) -> None:
    """The name is taken by something else once the device has died, so that it cannot come back."""
    with box.worker():
        box.plan(PLAN_3)
        box.whole()
        assert "applied_generation" in box.state().gauges
        (pid,) = box.host.programs()
        os.kill(pid, signal.SIGSTOP)
        ip(f"link del {box.host.interface}")
        ip(f"link add {box.host.interface} type veth peer name other")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: "applied_generation" not in box.state().gauges)
        eventually(lambda: "interface" in box.state().failing)
        ip(f"link del {box.host.interface}")
        box.whole()


def test_a_node_that_leaves_the_mesh_or_does_not_lead(box: Box) -> None:
    with box.worker():
        box.plan(PLAN_3)
        box.whole()
        by_the_leader = Route("10.64.1.0/24", "private", "10.1.0.11", onlink=True)
        gone = tuple(k for k in PLAN_3 if k not in ("interface", "summary", by_the_leader.key))
        box.plan({"interface": interface(up=False, address=""), by_the_leader.key: by_the_leader}, gone)
        eventually(lambda: ",UP" not in ip(f"link show {box.host.interface}"))
        assert lines("route")[-1] == f"10.64.1.0/24 via 10.1.0.11 dev eth0 {OURS} onlink"
        assert box.peers() == {} and "10.4.0.1" not in ip("addr")
        box.plan({}, ("interface", "summary", by_the_leader.key))
        eventually(lambda: box.routes() == set())


def test_a_steady_state_changes_nothing_and_forks_nothing(box: Box, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with box.worker(resync_period=0.2) as worker:
        items = (Firewall(ipip_guard=True, forward=True), SetEntry("no_masquerade_to", "10.64.1.0/24"))
        box.plan({**PLAN_3, **{item.key: item for item in items}})
        box.applied()
        time.sleep(0.5)
        command = ["strace", "-f", "-e", "trace=sendto,sendmsg,write,clone,clone3,fork,vfork,execve"]
        with subprocess.Popen(
            [*command, "-o", str(trace), "-p", str(worker.process.pid)], stderr=subprocess.DEVNULL
        ) as strace:
            time.sleep(2)
            strace.send_signal(signal.SIGINT)
    said = trace.read_text()
    assert said.count("RTM_GETROUTE") > 10 and said.count('"get=1') >= 3, "it did look"
    assert said.count("NFT_MSG_GETGEN") >= 3
    for change in ("RTM_NEW", "RTM_DEL", "RTM_SET", "set=1", "clone", "fork", "execve", "MSG_BATCH"):
        assert change not in said, change


def test_bad_items_are_named_and_the_rest_goes_on(box: Box) -> None:
    with box.worker():
        wide = Route("0.0.0.0/0", "wireguard")
        box.plan({**PLAN_3, wide.key: wide})
        box.applied()
        assert box.routes() == DESTINATIONS
        failing = eventually(lambda: box.state().failing)
        assert "as wide as a default route" in failing[f"plan/{wide.key}"].message
        box.plan({}, (wide.key,))
        eventually(lambda: not box.state().failing)


def test_a_plan_whose_interface_cannot_be_had_changes_nothing(box: Box) -> None:
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.whole()
        worker.end(signal.SIGKILL)
    box.plan({"interface": interface(mtu=1)})
    with box.worker() as worker:
        eventually(lambda: (s := box.bus.state("netctl")) and s.pid == worker.process.pid and s.failing)
        time.sleep(0.3)
        assert box.routes() == DESTINATIONS and "10.4.0.1/16" in ip("addr")
        box.plan({"interface": interface()})
        box.applied(worker.process.pid)


def test_a_host_that_does_not_forward_is_told(box: Box) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    with box.worker(resync_period=0.1):
        eventually(lambda: "net.ipv4.ip_forward" in (f := box.state().failing) or "ip_forward" in f)
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "0\n"
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        eventually(lambda: not box.state().failing)


def test_a_damaged_key_ends_the_worker_with_the_files_name(box: Box) -> None:
    config = box.config()
    Path(config.state_dir).mkdir()
    (Path(config.state_dir) / "key").write_text("damaged")
    with box.worker() as worker:
        assert worker.wait() == 2
        assert any(f"{config.state_dir}/key is damaged" in line["msg"] for line in worker.log)


def test_peers_are_reported_with_what_wireguard_learnt(box: Box, tmp_path: Path) -> None:
    """A second WireGuard on the host plays the peer, and makes the handshake."""
    far = f"{box.host.interface}b"
    private = subprocess.run(["wg", "genkey"], check=True, capture_output=True, text=True).stdout
    public = subprocess.run(
        ["wg", "pubkey"], check=True, capture_output=True, text=True, input=private
    ).stdout.strip()
    (tmp_path / "far").write_text(private)
    with box.worker():
        peer = PlannedPeer(public, ("10.64.1.0/24",))
        box.plan({"interface": interface(), "summary": PLAN_3["summary"], peer.key: peer})
        box.applied()
        us = box.follow(HOST)
        subprocess.run(["wireguard-go", far], check=True, capture_output=True)
        facts: HostFacts = eventually(lambda: us.get("host"))
        settings = f"""listen-port 51999 private-key {tmp_path / "far"} peer {facts.public_key}
            endpoint 127.0.0.1:51820 allowed-ips 10.4.0.1/32 persistent-keepalive 1"""
        subprocess.run(["wg", "set", far, *settings.split()], check=True)
        ip(f"link set {far} up")
        states = box.follow(WIREGUARD)
        state = eventually(lambda: (s := states.get(public)) and s.last_handshake and s, 12.0)
        assert (state.endpoint_ip, state.endpoint_port) == ("127.0.0.1", 51999)
        assert abs(state.last_handshake - time.time()) < 30
        box.plan({}, (peer.key,))
        eventually(lambda: public not in states, 6.0)
