"""The worker as a process, fed with plans, on a host with the real wireguard-go."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from kilo.bus import HOST, WIREGUARD
from kilo.model.host import HostFacts
from kilo.model.plan import Firewall, PlanItem, PlannedPeer, Route, SetEntry
from kilo.netctl.netlink.messages import GROUP_LINK, GROUPS_ADDRESS, GROUPS_ROUTE, GROUPS_RULE
from tests.feeding import Bus, Running, eventually, within
from tests.integration.netctl.far_end import FarEnd
from tests.integration.netctl.hosts import ip, kernel_events, lines, stopped
from tests.integration.netctl.worker_box import DESTINATIONS, OURS, PLAN_3, Box
from tests.unit.netctl.plans import interface, key, node


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
        moved = PlannedPeer(key(2), ("10.64.2.0/24", "10.32.2.1/32", "10.77.0.0/24"), "198.51.100.99", 51821)
        gone = tuple(item.key for item in node(3))
        box.plan({moved.key: moved, "route/0/10.77.0.0/24": Route("10.77.0.0/24", "wireguard")}, gone)
        eventually(lambda: key(3) not in box.peers() and "10.77.0.0/24" in box.routes())
        assert box.routes() == {"10.64.1.0/24", "10.32.1.1", "10.64.2.0/24", "10.32.2.1", "10.77.0.0/24"}
        assert box.peers()[key(2)] == {"10.64.2.0/24", "10.32.2.1/32", "10.77.0.0/24"}


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


@pytest.mark.timing
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
            within(1.0, whole, damage)
        assert [line for line in worker.log if line["msg"] == "repaired"]


def _says(worker: Running, message: str) -> bool:
    return message in worker.messages("warn")


def test_object_made_by_hand_is_removed_and_named_as_that(box: Box) -> None:
    name = box.host.interface
    lookup = "from all to 192.0.2.1"
    made = {
        "a route": (f"route add 10.9.0.0/24 dev {name} proto static", f"10.9.0.0/24 dev {name} proto static"),
        "an address": (f"addr add 10.99.0.1/32 dev {name}", f"10.99.0.1/32 dev {name}"),
        "a rule": (f"rule add {lookup} lookup 1107 prio 77", f"77: {lookup}/32 lookup 1107 proto 0"),
    }
    with box.worker(resync_period=0.5) as worker:
        box.plan(PLAN_3)
        box.whole()
        box.applied()
        for kind, (command, shown) in made.items():
            ip(command)
            message = f"removed {kind} that is not planned"
            eventually(partial(_says, worker, message), what=command)
            (objects,) = [line["objects"] for line in worker.log if line["msg"] == message]
            assert objects == [shown]
        assert "repaired" not in worker.messages("warn")


@pytest.mark.timing
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
            within(1.0, lambda: ruleset() == whole, damage)
        eventually(lambda: (s := box.state()).gauges["repairs_total"] >= 3 and not s.failing)
        assert [line for line in worker.log if line["msg"] == "repaired"]


def test_a_peer_that_was_removed_by_hand_is_back_after_the_next_look(box: Box) -> None:
    with box.worker():
        box.plan(PLAN_3)
        box.whole()
        subprocess.run(["wg", "set", box.host.interface, "peer", key(2), "remove"], check=True)
        eventually(lambda: box.state().gauges["repairs_total"] == 1)
        assert key(2) in box.peers()


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
    with box.worker() as worker:
        box.plan(PLAN_3)
        box.applied()
        (pid,) = box.host.programs()
        with stopped(worker.process.pid):
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
        failure = eventually(lambda: box.state().failing.get("ip_forward"))
        assert failure.message.endswith("set net.ipv4.ip_forward to 1")
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


def test_peers_are_reported_with_what_wireguard_learnt(box: Box, far: FarEnd) -> None:
    with box.worker():
        peer = PlannedPeer(far.public_key, ("10.64.1.0/24",))
        box.plan({"interface": interface(), "summary": PLAN_3["summary"], peer.key: peer})
        box.applied()
        us = box.follow(HOST)
        facts: HostFacts = eventually(lambda: us.get("host"))
        far.speak(facts.public_key, 51999)
        states = box.follow(WIREGUARD)
        state = eventually(lambda: (s := states.get(far.public_key)) and s.last_handshake and s, 12.0)
        assert (state.endpoint_ip, state.endpoint_port) == ("127.0.0.1", 51999)
        assert abs(state.last_handshake - time.time()) < 30
        box.plan({}, (peer.key,))
        eventually(lambda: far.public_key not in states, 6.0)


@pytest.mark.timing
def test_an_endpoint_learnt_by_roaming_beats_an_older_one_of_the_plan(box: Box, far: FarEnd) -> None:
    """Other changes of the peer, repairs of it and a restart leave it alone; a new endpoint does not."""

    def endpoint() -> str:
        shown = subprocess.run(
            ["wg", "show", box.host.interface, "endpoints"], check=True, capture_output=True, text=True
        ).stdout
        return shown.split()[-1]

    def planned(port: int, keepalive: int = 0) -> dict[str, PlanItem]:
        peer = PlannedPeer(far.public_key, ("10.64.1.0/24",), "127.0.0.1", port, keepalive)
        return {"interface": interface(), "summary": PLAN_3["summary"], peer.key: peer}

    with box.worker() as worker:
        box.plan(planned(51999))
        box.applied()
        us = box.follow(HOST)
        far.speak(eventually(lambda: us.get("host")).public_key, 51999)
        states = box.follow(WIREGUARD)
        eventually(lambda: (s := states.get(far.public_key)) and s.last_handshake, 12.0)
        far.move(51997)
        within(4.0, lambda: endpoint() == "127.0.0.1:51997")
        box.plan(planned(51999, keepalive=25))
        subprocess.run(
            ["wg", "set", box.host.interface, "peer", far.public_key, "allowed-ips", "10.64.7.0/24"],
            check=True,
        )
        eventually(lambda: box.peers()[far.public_key] == {"10.64.1.0/24"})
        assert endpoint() == "127.0.0.1:51997"
        worker.end(signal.SIGKILL)
    with box.worker() as worker:
        box.applied(worker.process.pid)
        time.sleep(0.7)
        assert endpoint() == "127.0.0.1:51997"
        far.be_silent(us["host"].public_key)
        box.plan(planned(51996, keepalive=25))
        within(2.0, lambda: endpoint() == "127.0.0.1:51996")
