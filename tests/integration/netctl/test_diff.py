"""``kg plan --diff`` on a real host: it finds what the agent would do, and does nothing of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kilo.bus import HOST
from kilo.model.host import HostFacts
from kilo.model.keys import PresharedKey
from kilo.model.node import ApiServer
from kilo.model.plan import Firewall, PlanItem, PlannedPeer, Route, Rule, SetEntry, Tunnel
from kilo.netctl.diff import Found, Rehearsal
from tests.feeding import eventually
from tests.integration.netctl.far_end import FarEnd
from tests.integration.netctl.firewall.hosts import entries
from tests.integration.netctl.hosts import ip, stopped
from tests.integration.netctl.worker_box import PLAN_3, Box
from tests.unit.netctl.plans import interface, key, mesh

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYzA="
MORE: list[PlanItem] = [
    Firewall(ipip_guard=True, forward=True),
    Rule(1107, "10.2.0.0/24", "10.1.0.99/32"),
    Route("10.1.0.99/32", "private", "10.1.0.99", table=1107, onlink=True),
    *entries(
        masquerade_from="10.2.0.0/24",
        no_masquerade_to="10.2.0.0/24 10.64.0.0/14",
        forward_accept_from="10.2.0.0/24",
        forward_accept_to="10.2.0.0/24",
        ipip_accept_from="10.1.0.10/32",
    ),
]
PLAN: dict[str, PlanItem] = PLAN_3 | {item.key: item for item in MORE}
CHANGES = re.compile(
    r"RTM_(?:NEW|DEL|SET)\w+|NFT_MSG_(?:NEW|DEL)\w+|BATCH_BEGIN|IPSET_CMD_(?:CREATE|DESTROY|ADD|DEL|FLUSH)"
    r"|IPSET_CMD_(?:RENAME|SWAP)|set=1|SO_SET_REPLACE|SO_SET_ADD_COUNTERS|flock\(|fork\(|@.kilo/netctl"
    r"|O_WRONLY|O_RDWR|O_CREAT|unlink|rename\(|mkdir"
)
WRITERS = "sendto,sendmsg,setsockopt,flock,fork,vfork,openat,connect,bind,unlink,unlinkat,rename,mkdir,write"
FIREWALLS = ("nftables", "legacy")


class Diff:
    """One run of the command, on the host of ``box``."""

    def __init__(self, box: Box, *flags: str, before: Sequence[str] = ()) -> None:
        config = box.config()
        command = [sys.executable, "-m", "kilo", "plan", "--diff", f"--run-dir={config.run_dir}"]
        command += [f"--interface={config.interface}", f"--state-dir={config.state_dir}"]
        done = subprocess.run(
            [*before, *command, "--hostname=localhost", *flags],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.status, self.said = done.returncode, done.stderr
        self.lines = done.stdout.splitlines()
        self.text = done.stdout


def kernel(box: Box) -> list[str]:
    """All that the kernel has that netctl could change; without counters, and the time of the listing."""
    commands = (
        "ip -d link",
        "ip addr",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip rule",
        "ip -6 rule",
        "nft list ruleset",
        "iptables-legacy-save",
        "ip6tables-legacy-save",
        "ipset save -sorted",
        "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names",
    )
    said = [subprocess.run(c.split(), capture_output=True, text=True).stdout for c in commands]
    shown = subprocess.run(["wg", "showconf", box.host.interface], capture_output=True, text=True).stdout
    told = [*said, *sorted(shown.strip().split("\n\n"))]  # wireguard-go keeps peers in no order
    return [re.sub(r"\[\d+:\d+\]|^#.*$", "", text, flags=re.MULTILINE) for text in told]


def unchanged(box: Box, *flags: str) -> Diff:
    """A run that leaves the kernel as it was."""
    before = kernel(box)
    done = Diff(box, *flags)
    assert kernel(box) == before
    return done


def applied(box: Box, plan: dict[str, PlanItem], **flags: str) -> None:
    """Have the plan in the kernel, and nobody who keeps it there."""
    with box.worker(**flags) as worker:
        box.plan(plan)
        box.applied()
        assert worker.end(signal.SIGHUP) == 0


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_what_was_just_applied_is_no_difference(box: Box, firewall: str) -> None:
    with box.worker(firewall=firewall):
        box.plan(PLAN)
        box.applied()
        done = unchanged(box)  # which firewall it is, is what netctl says
        assert (done.status, done.lines, done.said) == (0, [], "")
    assert unchanged(box, f"--firewall={firewall}").status == 1, "and its clean-up is one"


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_before_the_first_start_all_is_added(box: Box, firewall: str) -> None:
    peer = PlannedPeer(key(9), ("10.99.0.0/24",), "198.51.100.9", 51820, 25, PresharedKey(SECRET))
    box.plan(PLAN | {peer.key: peer})
    done = unchanged(box, f"--firewall={firewall}")
    assert done.status == 1 and done.said == ""
    wg = box.host.interface
    assert [line for line in done.lines if " firewall " not in line] == [
        f"+ link {wg} type wireguard mtu 1420 up",
        f"~ wireguard {wg}: the private key is not set",
        f"~ wireguard {wg}: port 0 -> 51820",
        f"+ address 10.4.0.1/16 dev {wg}",
        *sorted(
            [
                *(
                    f"+ peer {key(n)}: allowed IPs +10.32.{n}.1/32 +10.4.0.{n + 1}/32 +10.64.{n}.0/24,"
                    f" endpoint none -> 198.51.100.{n + 1}:51820"
                    for n in (1, 2, 3)
                ),
                f"+ peer {key(9)}: allowed IPs +10.99.0.0/24, endpoint none -> 198.51.100.9:51820,"
                " keepalive 0 -> 25, the preshared key is not set",
            ]
        ),
        *(f"+ route 10.32.{n}.1/32 via 10.4.0.{n + 1} dev {wg} src 10.1.0.10 onlink" for n in (1, 2, 3)),
        *(f"+ route 10.64.{n}.0/24 via 10.4.0.{n + 1} dev {wg} src 10.1.0.10 onlink" for n in (1, 2, 3)),
        "+ route 10.1.0.99/32 via 10.1.0.99 dev eth0 table 1107 onlink",
        "+ rule 1107: from 10.2.0.0/24 to 10.1.0.99/32 lookup 1107",
    ]
    wall = [line for line in done.lines if " firewall " in line]
    assert len(wall) > 20 and all(line.startswith("+ firewall ") for line in wall)
    assert not (Path(box.config().state_dir) / "key").exists()
    with box.worker(firewall=firewall):
        box.applied()
        assert Diff(box).lines == []


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_each_thing_that_is_not_as_planned_is_a_line(box: Box, firewall: str) -> None:
    applied(box, PLAN, firewall=firewall)
    wg = box.host.interface
    flag = f"--firewall={firewall}"
    assert unchanged(box, flag).lines == []
    ip("route del 10.64.1.0/24")
    ip("route replace 10.64.2.0/24 dev eth0 proto 171")
    ip(f"route add 192.0.2.0/24 dev {wg} proto 171")
    ip("route add 192.0.2.0/24 dev eth0 table 1107 proto 171")
    ip("route add 192.0.2.128/25 dev eth0 proto static")  # nobody's business
    ip("rule del to 10.1.0.99 lookup 1107")
    ip("rule add to 192.0.2.1 lookup 1107 priority 1107 protocol 171")
    ip(f"addr add 10.4.9.9/32 dev {wg}")
    ip(f"link set {wg} mtu 1300")
    subprocess.run(["wg", "set", wg, "peer", key(3), "remove"], check=True)
    subprocess.run(["wg", "set", wg, "peer", key(2), "allowed-ips", "10.64.2.0/24"], check=True)
    subprocess.run(["wg", "set", wg, "peer", key(8), "allowed-ips", "10.98.0.0/24"], check=True)
    if firewall == "nftables":
        subprocess.run(["nft", "delete element ip kilo no-masquerade-to { 10.64.0.0/14 }"], check=True)
        subprocess.run(["nft", "add element ip kilo masquerade-from { 10.3.0.0/24 }"], check=True)
        wall = [
            "+ firewall nft element ip kilo no-masquerade-to 10.64.0.0/14",
            "- firewall nft element ip kilo masquerade-from 10.3.0.0/24",
        ]
    else:
        subprocess.run(["ipset", "del", "kilo-no-masquerade-to-v4", "10.64.0.0/14"], check=True)
        subprocess.run(["ipset", "add", "kilo-masquerade-from-v4", "10.3.0.0/24"], check=True)
        subprocess.run(["iptables-legacy", "-F", "KILO-IPIP"], check=True)
        wall = [
            "+ firewall ipset kilo-no-masquerade-to-v4 10.64.0.0/14",
            "- firewall ipset kilo-masquerade-from-v4 10.3.0.0/24",
            '+ firewall iptables filter KILO-IPIP "Kilo: IPIP from the location"',
            '+ firewall iptables filter KILO-IPIP "Kilo: IPIP from anybody else"',
        ]
    done = unchanged(box, flag)
    assert done.status == 1 and done.said == ""
    assert sorted(done.lines) == sorted(
        [
            f"~ link {wg}: mtu 1300 -> 1420",
            f"- address 10.4.9.9/32 dev {wg}",
            *wall,
            f"+ peer {key(3)}: allowed IPs +10.32.3.1/32 +10.4.0.4/32 +10.64.3.0/24,"
            " endpoint none -> 198.51.100.4:51820",
            f"~ peer {key(2)}: allowed IPs +10.32.2.1/32 +10.4.0.3/32",
            f"- peer {key(8)}",
            f"+ route 10.64.1.0/24 via 10.4.0.2 dev {wg} src 10.1.0.10 onlink",
            f"~ route 10.64.2.0/24: dev eth0 -> via 10.4.0.3 dev {wg} src 10.1.0.10 onlink",
            f"- route 192.0.2.0/24 dev {wg}",
            "- route 192.0.2.0/24 dev eth0 table 1107",
            "+ rule 1107: from 10.2.0.0/24 to 10.1.0.99/32 lookup 1107",
            "- rule 1107: from all to 192.0.2.1/32 lookup 1107",
        ]
    )
    kinds = [line.split()[1] for line in done.lines]
    assert kinds == sorted(kinds, key=["link", "address", "firewall", "peer", "route", "rule"].index)
    told = json.loads(unchanged(box, flag, "-o", "json").text)
    assert [" ".join(d.values()) for d in told["differences"]] == done.lines
    assert told["notes"] == told["unknown"] == []
    with box.worker(firewall=firewall):
        box.applied()
        assert Diff(box).lines == [], "and that is what the agent does"


def test_secrets_are_said_to_differ_and_not_printed(box: Box) -> None:
    peer = PlannedPeer(key(1), ("10.99.0.0/24",), preshared_key=PresharedKey(SECRET))
    plan = mesh(0) | {peer.key: peer}
    applied(box, plan)
    state = Path(box.config().state_dir)
    ours = (state / "key").read_text()
    other = subprocess.run(["wg", "genkey"], capture_output=True, text=True).stdout.strip()
    (state / "key").write_text(other)
    for command in ("preshared-key", "private-key"):
        of = ["peer", key(1)] if command == "preshared-key" else []
        file = state / "theirs"
        file.write_text(subprocess.run(["wg", "genpsk"], capture_output=True, text=True).stdout)
        subprocess.run(["wg", "set", box.host.interface, *of, command, str(file)], check=True)
    done, told = unchanged(box), unchanged(box, "-o", "json")
    assert done.lines == [
        f"~ wireguard {box.host.interface}: the private key differs",
        f"~ peer {key(1)}: the preshared key differs",
    ]
    for secret in (SECRET, ours, other, (state / "theirs").read_text().strip()):
        assert secret not in done.text + done.said + told.text + told.said
    assert (state / "key").read_text() == other


def test_what_is_somebody_elses_is_named_and_left(box: Box) -> None:
    applied(box, PLAN)
    ip("route del 10.64.1.0/24")
    ip("route add 10.64.1.0/24 dev eth0")
    done = unchanged(box)
    assert done.status == 0 and done.lines == []
    assert "route/0/10.64.1.0/24: a route that is not ours is in its place" in done.said


def test_the_other_firewall_goes(box: Box) -> None:
    applied(box, PLAN, firewall="legacy")
    done = unchanged(box, "--firewall=nftables")
    assert "+ firewall nft table ip kilo" in done.lines
    assert "- firewall iptables nat KILO-NAT" in done.lines
    assert "- firewall ipset kilo-no-masquerade-to-v4" in done.lines


def suspects(trace: Path) -> list[str]:
    """The calls in a trace that change something, but for what is printed."""
    calls = [line.partition(" ")[2].strip() for line in trace.read_text().splitlines()]
    told = [call for call in calls if not call.startswith("write(1,") and '"/dev/null"' not in call]
    return [call for call in told if CHANGES.search(call)]


def strace(trace: Path) -> list[str]:
    return ["strace", "-f", "-v", "-s", "512", "-e", f"trace={WRITERS},execve", "-o", str(trace)]


@pytest.mark.parametrize("firewall", FIREWALLS)
@pytest.mark.parametrize("state", ["nothing there", "all there", "something amiss"])
def test_nothing_is_sent_that_changes_anything(box: Box, tmp_path: Path, firewall: str, state: str) -> None:
    """Neither a change, nor a transaction that would be thrown away, nor a lock, claim or program."""
    if state == "nothing there":
        box.plan(PLAN)
    else:
        applied(box, PLAN, firewall=firewall)
    if state == "something amiss":
        ip("route del 10.64.1.0/24")
        ip("rule del to 10.1.0.99 lookup 1107")
        subprocess.run("nft flush ruleset; iptables-legacy -F; ipset flush", shell=True, check=True)
        subprocess.run(["wg", "set", box.host.interface, "peer", key(3), "remove"], check=True)
    trace = tmp_path / "trace"
    done = Diff(box, f"--firewall={firewall}", before=strace(trace))
    assert done.status == (0 if state == "all there" else 1) and done.said == ""
    assert suspects(trace) == []
    said = trace.read_text()
    assert said.count(" execve(") == 1, "itself"
    assert "RTM_GETROUTE" in said and ("get=1" in said) == (state != "nothing there"), "it did look"


def test_which_firewall_it_is_is_not_tried_out(box: Box, tmp_path: Path) -> None:
    """netctl finds that out by a transaction that the kernel throws away."""
    box.plan(PLAN)
    trace = tmp_path / "trace"
    done = Diff(box, before=strace(trace))
    assert "+ firewall nft table ip kilo" in done.lines
    assert suspects(trace) == []


@pytest.mark.parametrize(
    "command",
    [
        "ip route add 192.0.2.0/24 dev eth0",
        "ip link set eth0 mtu 1400",
        "nft add table ip other",
        "ipset create other hash:net",
        "iptables-legacy -A INPUT -j ACCEPT",
        "wg set {} listen-port 51999",
        "touch {}",
    ],
)
def test_such_a_change_would_be_seen(box: Box, tmp_path: Path, wireguard_go: str, command: str) -> None:
    trace = tmp_path / "trace"
    name = wireguard_go if command.startswith("wg") else str(tmp_path / "file")
    subprocess.run([*strace(trace), *command.format(name).split()], check=True)
    assert suspects(trace) != []


def found(box: Box, plan: dict[str, PlanItem], **flags: str) -> Found:
    """What would be changed for a plan, found in this process, and that nothing was."""
    before = kernel(box)
    rehearsal = Rehearsal(box.config(**flags))
    try:
        told = rehearsal.run(plan)
    finally:
        rehearsal.close()
    assert kernel(box) == before
    return told


def lines_of(box: Box, plan: dict[str, PlanItem], **flags: str) -> list[str]:
    told = found(box, plan, **flags)
    assert told.unknown == told.notes == []
    return [" ".join(difference) for difference in told.differences]


def test_a_plan_that_moves(box: Box) -> None:
    applied(box, PLAN, firewall="nftables")
    wg = box.host.interface

    def moved(*items: PlanItem) -> list[str]:
        return lines_of(box, PLAN | {item.key: item for item in items}, firewall="nftables")

    assert moved() == []
    assert moved(interface(address="10.4.0.200/16")) == [
        f"- address 10.4.0.1/16 dev {wg}",
        f"+ address 10.4.0.200/16 dev {wg}",
    ]
    assert moved(interface(listen_port=51999)) == [f"~ wireguard {wg}: port 51820 -> 51999"]
    takes = PlannedPeer(key(1), ("10.64.1.0/24", "10.32.1.1/32", "10.64.2.0/24"), "198.51.100.77", 51820)
    gives = PlannedPeer(key(2), ("10.32.2.1/32", "10.4.0.3/32"), "198.51.100.3", 51820)
    assert moved(takes, gives) == [
        f"~ peer {key(1)}: allowed IPs +10.64.2.0/24 -10.4.0.2/32,"
        " endpoint 198.51.100.2:51820 -> 198.51.100.77:51820",
        f"~ peer {key(2)}: allowed IPs -10.64.2.0/24",
    ]
    said = 'kilo forward "Kilo: what TCP may send at once"'
    assert moved(Tunnel("ipip", "10.2.0.1/32")) == [
        "+ link tunl0 type ipip mtu 1480 up",
        "+ address 10.2.0.1/32 dev tunl0",
        *[f"+ firewall nft rule ip {said}"] * 2,
        *[f"+ firewall nft rule ip6 {said}"] * 2,
    ]


def test_a_node_that_leads_no_more(box: Box) -> None:
    applied(box, PLAN, firewall="nftables")
    wg = box.host.interface
    idle: dict[str, PlanItem] = {
        k: item for k, item in PLAN.items() if isinstance(item, (Firewall, SetEntry))
    }
    idle["interface"] = interface(up=False, address="")
    assert lines_of(box, idle, firewall="nftables") == [
        f"~ link {wg}: up -> down",
        f"- address 10.4.0.1/16 dev {wg}",
        *sorted(f"- peer {key(n)}" for n in (1, 2, 3)),
        *(f"- route 10.32.{n}.1/32 via 10.4.0.{n + 1} dev {wg} src 10.1.0.10 onlink" for n in (1, 2, 3)),
        *(f"- route 10.64.{n}.0/24 via 10.4.0.{n + 1} dev {wg} src 10.1.0.10 onlink" for n in (1, 2, 3)),
        "- route 10.1.0.99/32 via 10.1.0.99 dev eth0 table 1107 onlink",
        "- rule 1107: from 10.2.0.0/24 to 10.1.0.99/32 lookup 1107",
    ]
    wall = lines_of(box, {"interface": interface()}, firewall="nftables")
    assert "- firewall nft table ip kilo" in wall
    assert not [line for line in wall if "firewall" in line and not line.startswith("-")]


def test_another_interface_takes_the_place_of_the_one_before(box: Box) -> None:
    applied(box, PLAN_3, firewall="nftables")
    old, new = box.host.interface, f"{box.host.interface}b"
    box.plan(PLAN_3)
    done = unchanged(box, f"--interface={new}", "--firewall=nftables")
    assert done.status == 1 and "taken" not in done.said
    assert f"~ link {old}: up -> down" in done.lines
    assert f"- address 10.4.0.1/16 dev {old}" in done.lines
    assert f"+ address 10.4.0.1/16 dev {new}" in done.lines
    assert [line for line in done.lines if line.startswith(f"+ link {new}")]
    (moved,) = [line for line in done.lines if line.startswith("~ route 10.64.1.0/24: ")]
    before, _, after = moved.partition(" -> ")
    assert f"dev {old} " in before and f"dev {new} " in after


def test_what_would_be_left_undone_is_a_note(box: Box) -> None:
    """A route over the way to its own peer; an item that is refused; a plan that is none."""
    over = PlannedPeer(key(1), ("198.51.100.0/24",), "198.51.100.2", 51820)
    wide = Route("0.0.0.0/0", "wireguard")
    plan: list[PlanItem] = [interface(), over, Route("198.51.100.0/24", "wireguard"), wide]
    told = found(box, {item.key: item for item in plan}, firewall="nftables")
    assert [d.kind for d in told.differences if d.kind != "wireguard"] == ["link", "address", "peer"]
    assert any(
        note.startswith("route/0/0.0.0.0/0 is refused: dst 0.0.0.0/0 is as wide") for note in told.notes
    )
    assert any("it would carry the way to its own peer" in note for note in told.notes)
    refused = found(box, {"interface": interface(mtu=1)}, firewall="nftables")
    assert refused.differences == [] and len(refused.unknown) == 1


def test_a_device_that_does_not_answer_cannot_be_compared(box: Box) -> None:
    applied(box, PLAN, firewall="nftables")
    (program,) = box.host.programs()
    with stopped(program):
        done = Diff(box, "--firewall=nftables")
    assert done.status == 4 and "does not answer" in done.said


def test_the_host_of_iptables_nft(box: Box) -> None:
    subprocess.run(["iptables-nft", "-P", "FORWARD", "DROP"], check=True)
    in_host = [
        '+ firewall nft rule ip filter FORWARD "Kilo: forwarded from the mesh"',
        '+ firewall nft rule ip filter FORWARD "Kilo: forwarded to the mesh"',
    ]
    added = lines_of(box, PLAN, firewall="nftables")
    assert [line for line in added if " filter " in line or "ipset" in line] == [
        "+ firewall ipset kilo-nft-forward-accept-from-v4",
        "+ firewall ipset kilo-nft-forward-accept-from-v4 10.2.0.0/24",
        "+ firewall ipset kilo-nft-forward-accept-to-v4",
        "+ firewall ipset kilo-nft-forward-accept-to-v4 10.2.0.0/24",
        *in_host,
    ]
    applied(box, PLAN, firewall="nftables")
    assert lines_of(box, PLAN, firewall="nftables") == []
    subprocess.run(["iptables-nft", "-F", "FORWARD"], check=True)
    subprocess.run(["nft", "add chain ip kilo foreign"], check=True)
    assert lines_of(box, PLAN, firewall="nftables") == [*in_host, "- firewall nft chain ip kilo foreign"]


def test_an_order_that_is_wrong(box: Box) -> None:
    """All is there, and a rule stands where it does not count."""
    applied(box, PLAN, firewall="legacy")
    nat = ["iptables-legacy", "-t", "nat"]
    shown = subprocess.run([*nat, "-S", "KILO-NAT"], capture_output=True, text=True).stdout
    subprocess.run([*nat, "-D", "KILO-NAT", "1"], check=True)
    subprocess.run([*nat, *shlex.split(shown.splitlines()[1])], check=True)
    assert lines_of(box, PLAN, firewall="legacy") == [
        "~ firewall iptables nat: written anew, in another order or with other properties"
    ]


def test_a_route_that_waits_for_its_peer(box: Box, far: FarEnd) -> None:
    """It is set once the peer has answered lately, which the device tells."""
    peer = PlannedPeer(far.public_key, ("10.4.0.2/32", "198.51.100.0/24"), "127.0.0.1", 51999)
    items = [interface(), PLAN_3["summary"], peer, ApiServer(("198.51.100.7",), True)]
    plan = {item.key: item for item in (*items, Route("198.51.100.0/24", "wireguard"))}
    before = found(box, plan, firewall="nftables")
    assert not [d for d in before.differences if d.kind == "route"]
    assert any("has not answered a handshake yet" in note for note in before.notes)
    with box.worker(firewall="nftables") as worker:
        box.plan(plan)
        facts: HostFacts = eventually(lambda: box.follow(HOST).get("host"))
        far.answer(facts.public_key, 51999)
        eventually(lambda: "198.51.100.0/24" in box.routes(), 15.0)
        assert worker.end(signal.SIGHUP) == 0
    assert lines_of(box, plan, firewall="nftables") == []
    ip("route del 198.51.100.0/24")
    assert lines_of(box, plan, firewall="nftables") == [f"+ route 198.51.100.0/24 dev {box.host.interface}"]
