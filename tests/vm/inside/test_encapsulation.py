"""A mesh of two locations over kernel WireGuard and IPIP: who reaches whom, and how it looks on the wire.

Every test runs with --encapsulate=always and the legacy firewall; again with crosssubnet and nftables,
after all agents were killed and started over what they had left in the kernel; and so with never.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from tests.e2e.observe import INTERVAL, left_over
from tests.lab.host import Host, wait_until
from tests.lab.mesh import Mesh, NodeSpec
from tests.lab.ping import checksum, open_socket, reachable
from tests.lab.processes import StartedProcesses
from tests.lab.underlay import API_ADDRESS
from tests.vm.conftest import FIGURE
from tests.vm.inside import places
from tests.vm.inside.capture import IPIP, TCP, UDP, Capture, Packet
from tests.vm.inside.places import LAPTOP, PODS, SECONDS, Laptop, private_ip
from tests.vm.inside.trace import Trace

FIREWALLS = {"always": "legacy", "crosssubnet": "nftables", "never": "legacy"}
MODES = sorted(FIREWALLS)
WIREGUARD = 51820
REPAIR_SECONDS = 10
"""Within 1 s of the event on a real machine; looking alone takes as long on an emulated one."""
POLL_SECONDS = REPAIR_SECONDS + 1
"""The kernel sends no events for WireGuard's peers."""
RESYNC = 10
RESYNC_SECONDS = REPAIR_SECONDS + RESYNC
"""Nor for legacy tables."""
GAP_SECONDS = 10
"""How long a change of leader may interrupt traffic between locations, which takes less than 1 s even
here, unless a handshake meets nobody: it is repeated after 5 s."""

STATE = ("links", "routes", "rules", "firewall", "sets", "nftables")

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@contextmanager
def hosts_of(specs: Sequence[NodeSpec], logs: Path) -> Iterator[Mesh]:
    """Hosts of ``specs`` with no agent yet; berlin and potsdam reach one another's private addresses."""
    with Mesh(specs, logs, (), print) as mesh:
        sites = mesh.underlay.sites
        places.join(sites["berlin"], sites["potsdam"])
        yield mesh


def start(hosts: Mesh, laptop: Laptop, mode: str) -> None:
    """All agents run with this --encapsulate, and what they do has settled."""
    flags = [f"--encapsulate={mode}", f"--firewall={FIREWALLS[mode]}", f"--resync-period={RESYNC}s"]
    places.restart_agents(hosts, mode, ["--mesh-granularity=location", *flags])
    hosts.attach_pods(SECONDS)
    places.settle(hosts, mode)
    laptop.connect(mode)
    wait_until(laptop.known, SECONDS, "the laptop has a handshake with every leader")


@pytest.fixture(scope="module")
def hosts(logs: Path) -> Iterator[Mesh]:
    """The hosts, with no agent yet."""
    with hosts_of(places.SPECS, logs) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def laptop(hosts: Mesh) -> Laptop:
    return Laptop(hosts)


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest, hosts: Mesh, laptop: Laptop) -> str:
    """The value of --encapsulate that all agents run with now; what they do has settled."""
    mode = str(request.param)
    start(hosts, laptop, mode)
    return mode


@pytest.fixture
def mesh(mode: str, hosts: Mesh) -> Mesh:
    return hosts


@dataclass(frozen=True)
class Traffic:
    """What became of a ping from everybody to everybody else, and how it looked where.

    ``wires``: by the name of the router, or ``internet``.
    """

    unanswered: list[tuple[str, str]]
    wires: dict[str, list[Packet]]


def everybody(mesh: Mesh, laptop: Laptop) -> tuple[dict[str, socket.socket], dict[str, str]]:
    """Sockets to ping from and addresses to ping: of each pod and node, and of the laptop."""
    sockets = {f"pod {m.name}": m.ping_socket() for m in mesh}
    sockets |= {f"node {m.name}": m.host.call(open_socket) for m in mesh}
    sockets["laptop"] = laptop.host.call(open_socket)
    addresses = {f"pod {m.name}": m.address for m in mesh}
    addresses |= {f"node {m.name}": private_ip(mesh, m) for m in mesh}
    addresses["laptop"] = LAPTOP
    return sockets, addresses


@pytest.fixture(scope="module")
def traffic(mode: str, hosts: Mesh, laptop: Laptop) -> Traffic:
    return traffic_of(hosts, laptop)


def traffic_of(hosts: Mesh, laptop: Laptop) -> Traffic:
    """Ping from everybody to everybody else, and listen on all wires."""
    sockets, addresses = everybody(hosts, laptop)
    captures = {name: Capture(site.router) for name, site in hosts.underlay.sites.items()}
    captures["internet"] = Capture(hosts.underlay.internet)
    for capture in captures.values():
        capture.__enter__()
    answered = reachable(sockets, addresses, SECONDS, gap=2)
    for capture in captures.values():
        capture.__exit__(None, None, None)
    for name, raw in sockets.items():
        if not name.startswith("pod"):
            raw.close()
    return Traffic(
        [(a, b) for a in sockets for b in addresses if a != b and (a, b) not in answered],
        {name: capture.packets for name, capture in captures.items()},
    )


def test_pods_nodes_and_an_outside_peer_all_reach_one_another(traffic: Traffic) -> None:
    assert traffic.unanswered == []


def test_between_locations_nothing_is_in_the_clear(traffic: Traffic) -> None:
    packets = traffic.wires["internet"]
    api = IPv4Address(API_ADDRESS)
    tunnelled = [p for p in packets if p.protocol == UDP and WIREGUARD in p.ports]
    to_api = [p for p in packets if p.protocol == TCP and api in (p.source, p.target)]
    assert len({p.between() for p in tunnelled}) >= 3, "both leaders, and the laptop with each"
    assert set(packets) - set(tunnelled) - set(to_api) == set()


def test_ipip_is_where_it_belongs_and_nowhere_else(traffic: Traffic, mesh: Mesh, mode: str) -> None:
    ips = {m.name: private_ip(mesh, m) for m in mesh}

    def pairs(*names: tuple[str, str]) -> set[frozenset[str]]:
        return {frozenset((ips[a], ips[b])) for a, b in names}

    across = pairs(("ada", "cem"), ("bob", "cem"))
    berlin, lisbon = pairs(("ada", "bob")), pairs(("dan", "eve"), ("dan", "fay"), ("eve", "fay"))
    if mode == "never":
        across = set()
    always = mode == "always"
    expected = {
        "berlin": across | berlin if always else across,
        "potsdam": across,
        "lisbon": lisbon if always else set(),
        "home": set(),
        "internet": set(),
    }
    ipip = {
        name: {p.between() for p in packets if p.protocol == IPIP} for name, packets in traffic.wires.items()
    }
    assert ipip == expected


def test_pods_are_in_the_clear_within_a_subnet_at_most(traffic: Traffic, mesh: Mesh, mode: str) -> None:
    """And with ``always`` not even there, nor is what came from another location or goes there."""
    for name, packets in traffic.wires.items():
        clear = [p for p in packets if p.protocol != IPIP and p.touches(PODS)]
        if mode == "always":
            far = [f"{private_ip(mesh, m)}/32" for m in mesh if m.spec.location != places.SITES.get(name)]
            networks = [IPv4Network(network) for network in (*far, f"{LAPTOP}/32")]
            clear += [p for p in packets if p.protocol != IPIP and any(map(p.touches, networks))]
            assert clear == []
            continue
        assert bool(clear) == (name in ("berlin", "lisbon"))
        here = [m for m in mesh if m.spec.site == name]
        near = [IPv4Network(n) for m in here for n in (m.pod_cidr, private_ip(mesh, m))]
        for p in clear:
            assert p.device.startswith("lan") and any(p.touches(n) for n in near), f"{name}: {p}"


def test_the_tunnel_device_rules_and_guard(mesh: Mesh, mode: str) -> None:
    for member in mesh:
        addresses = member.host.run("ip", "-o", "addr", "show", "dev", "tunl0")
        if mode == "never":
            assert " inet " not in addresses, f"{member.name}: what it had in another mode is gone"
        else:
            link = member.host.run("ip", "-o", "-d", "link", "show", "tunl0")
            assert "mtu 1480" in link and ",UP" in link.split(">")[0], f"{member.name}: {link}"
            assert member.pod_cidr.replace(".0/24", ".1/32") in addresses, member.name
        others = {
            f"{private_ip(mesh, m)}/32"
            for m in mesh
            if m is not member
            and m.spec.location == member.spec.location
            and places.encapsulated(mode, member, m)
        }
        table = member.host.run("ip", "route", "show", "table", "1107", check=False).splitlines()
        assert {f"{line.split()[0]}/32" for line in table} == others, member.name
        assert all("dev tunl0" in line and "onlink" in line for line in table)
        rules = [line for line in member.host.run("ip", "rule").splitlines() if line.startswith("1107:")]
        from_pods = {f"from {member.pod_cidr} to {ip[:-3]} lookup 1107" for ip in others}
        from_mesh = {f"from all to {ip[:-3]} iif kilo0 lookup 1107" for ip in others}
        wanted = from_pods | (from_mesh if member.name in places.VOLUNTEERS else set())
        assert {line.partition("\t")[2].partition(" proto")[0] for line in rules} == wanted, member.name


@pytest.mark.parametrize("mode", ["always"], indirect=True)
def test_a_minute_at_rest_changes_and_starts_nothing(mesh: Mesh, tmp_path: Path) -> None:
    """With everybody checking in meanwhile."""

    def checked_in() -> dict[str, str]:
        return {m.name: mesh.cluster.annotations(m.name)["last-seen"] for m in mesh}

    before = checked_in()
    started = StartedProcesses([p.pid for m in mesh for p in m.agent.processes()])
    ada = mesh["ada"]
    trace = ada.host.call(lambda: Trace(ada.agent.worker("netctl"), tmp_path / "trace"))
    time.sleep(60)
    changes = trace.stop()
    started.stop()
    assert changes == []
    assert (started.unavailable, started.forks, dict(started.programs)) == ("", 0, {})
    after = checked_in()
    assert all(after[name] != before[name] for name in before)


def ipip(source: str, target: str, inner_source: str, inner_target: str, identifier: int) -> bytes:
    """An IPIP packet with a ping in it."""
    echo = struct.pack("!BBHHH", 8, 0, 0, identifier, 1)
    echo = struct.pack("!BBHHH", 8, 0, checksum(echo), identifier, 1)
    inner = header(inner_source, inner_target, socket.IPPROTO_ICMP, len(echo)) + echo
    return header(source, target, socket.IPPROTO_IPIP, len(inner)) + inner


def header(source: str, target: str, protocol: int, payload: int) -> bytes:
    """An IPv4 header with its checksum."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    blank = struct.pack("!BBHHHBBH", 0x45, 0, 20 + payload, 0, 0, 64, protocol, 0) + ends
    return blank[:10] + struct.pack("!H", checksum(blank)) + blank[12:]


def heard(raw: socket.socket, identifier: int, seconds: float) -> bool:
    """Whether a ping with that identifier arrives within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            packet = raw.recv(2048)
        except BlockingIOError:
            time.sleep(0.05)
            continue
        start = (packet[0] & 15) * 4
        if packet[start] == 8 and struct.unpack_from("!H", packet, start + 4)[0] == identifier:
            return True
    return False


def send_ipip(host: Host, packet: bytes, target: str) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(packet, (target, 0))

    host.call(send)


def test_ipip_from_strangers_is_dropped(mesh: Mesh, mode: str) -> None:
    """A router of the LAN is no node: what it sends does not reach a pod, and a node's does, unless
    nothing is encapsulated any more: then nobody's does."""
    ada, bob, cem = mesh["ada"], mesh["bob"], mesh["cem"]
    router = mesh.underlay.sites["berlin"].router
    target = private_ip(mesh, ada)
    assert ada.pod
    with ada.pod.open_ping_socket() as pod:
        for identifier, host, source, arrives in (
            (0x5101, cem.host, private_ip(mesh, cem), mode != "never"),
            (0x5102, router, "172.16.1.1", False),
            (0x5103, bob.host, private_ip(mesh, bob), mode != "never"),
        ):
            packet = ipip(source, target, cem.address, ada.address, identifier)
            send_ipip(host, packet, target)
            assert heard(pod, identifier, 30 if arrives else 3) == arrives, source


LOOKS = (
    "ip -o addr show dev kilo0",
    "ip -o link show dev kilo0",
    "ip route show proto 171",
    "ip rule show",
    "wg show kilo0 allowed-ips",
)
TUNNEL_LOOKS = (
    "ip -o addr show dev tunl0",
    "ip -o link show dev tunl0",
    "ip route show table 1107",
)
FIREWALL_LOOKS = {
    "legacy": ("iptables-legacy -S", "iptables-legacy -t nat -S", "ipset save"),
    "nftables": ("nft list ruleset",),
}
UNSTABLE = re.compile(r"^\d+:|(valid|preferred)_lft (\d+sec|forever)", re.MULTILINE)


def damages(mesh: Mesh, mode: str) -> list[tuple[str, float]]:
    """What to break on a leader, and how long it may stay so."""
    found = [(f"wg set kilo0 peer {mesh.cluster.annotations('dan')['key']} remove", POLL_SECONDS)]
    if mode != "never":
        found += [
            ("ip addr flush dev tunl0", REPAIR_SECONDS),
            ("ip link set tunl0 mtu 1300 down", REPAIR_SECONDS),
            ("ip route flush table 1107", REPAIR_SECONDS),
            ("ip route flush proto 171 dev tunl0", REPAIR_SECONDS),
            ("ip rule del pref 1107", REPAIR_SECONDS),
        ]
    if FIREWALLS[mode] == "nftables":
        found += [
            ("nft flush set ip kilo no-masquerade-to", REPAIR_SECONDS),
            ("nft delete table ip kilo", REPAIR_SECONDS),
        ]
    elif mode == "always":
        found.append(("iptables-legacy -t nat -F KILO-NAT", RESYNC_SECONDS))
    return [
        *found,
        ("ip link set kilo0 mtu 1300 down", REPAIR_SECONDS),
        ("ip link del kilo0", REPAIR_SECONDS),
    ]


def test_what_is_broken_by_hand_comes_back(
    mesh: Mesh, mode: str, record_property: Callable[[str, object], None]
) -> None:
    """On a leader: its tunnel, the way into it, the firewall, and at last the WireGuard interface with
    all that it held."""
    ada = mesh["ada"]
    looks = [*LOOKS, *FIREWALL_LOOKS[FIREWALLS[mode]], *(TUNNEL_LOOKS if mode != "never" else ())]
    script = "".join(f"echo '%%% {look}'\n{look}\n" for look in looks)

    def state() -> dict[str, list[list[str]]]:
        """What is there, with no order and without what a new device changes."""
        text = UNSTABLE.sub("", ada.host.run("sh", "-c", script, check=False))
        parts = [part.splitlines() for part in text.split("%%% ")[1:]]
        return {look: sorted(sorted(line.split()) for line in found) for look, *found in parts}

    before = state()
    assert all(before.values())
    took = []
    for damage, limit in damages(mesh, mode):
        ada.host.run(*damage.split())
        begun = time.monotonic()
        while state() != before and time.monotonic() - begun < limit:
            time.sleep(0.2)
        assert state() == before, f"after {damage!r}"
        took.append(f"{time.monotonic() - begun:.1f} s after {damage.partition('=')[0]}")
    record_property(FIGURE, "as before " + ", ".join(took))
    places.settle(mesh, mode)
    sources = {m.name: m.ping_socket() for m in mesh}
    targets = {m.name: m.address for m in mesh}
    assert len(reachable(sources, targets, SECONDS, gap=1)) == len(mesh.members) * (len(mesh.members) - 1)


def test_tcp_passes_through_tunnels_within_tunnels(mesh: Mesh) -> None:
    """From a pod whose node does not lead to another: IPIP, WireGuard, and IPIP again."""
    bob, eve = mesh["bob"].pod, mesh["eve"].pod
    assert bob and eve
    sent = os.urandom(1 << 18)
    with eve.call(lambda: socket.create_server((eve.address, 7777))) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(SECONDS)
        received = pool.submit(lambda: _receive(server))
        with bob.call(lambda: socket.create_connection((eve.address, 7777), SECONDS)) as client:
            client.sendall(sent)
        assert received.result(SECONDS) == sent


def _receive(server: socket.socket) -> bytes:
    connection, _ = server.accept()
    with connection, connection.makefile("rb") as stream:
        return stream.read()


def test_one_firewall_is_there_and_nothing_of_the_other(mesh: Mesh, mode: str) -> None:
    for member in mesh:
        legacy = member.host.run("iptables-legacy-save") + member.host.run("ip6tables-legacy-save")
        nftables = member.host.run("nft", "list", "ruleset")
        assert ("KILO-" in legacy) == (FIREWALLS[mode] == "legacy"), member.name
        assert ("kilo" in nftables) == (FIREWALLS[mode] == "nftables"), member.name


def change_leader(mesh: Mesh, old: str, new: str) -> None:
    """The operator makes another node of the location its leader."""
    mesh.cluster.annotate(new, {"leader": "true"})
    mesh.cluster.annotate(old, {"leader": None})


def test_the_leader_changes_under_a_running_ping(
    mesh: Mesh, mode: str, record_property: Callable[[str, object], None]
) -> None:
    """Within locations nothing is lost; between them for as long as a new session takes."""
    other, heir = ("ada", "bob") if mode == "never" else ("cem", "cem")
    within = {
        f"bob to {other}": mesh["bob"].pinger(mesh[other].address, INTERVAL),
        "fay to eve": mesh["fay"].pinger(mesh["eve"].address, INTERVAL),
    }
    between = {
        "bob to eve": mesh["bob"].pinger(mesh["eve"].address, INTERVAL),
        f"fay to {other}": mesh["fay"].pinger(mesh[other].address, INTERVAL),
    }
    pingers = {**within, **between}

    def answered() -> None:
        """Wait until all pings that are sent from now on are answered, which is soon."""
        now = time.monotonic()
        wait_until(
            lambda: all(p.last_answered() > now for p in pingers.values()), SECONDS, "pings are answered"
        )

    answered()
    begun = time.monotonic()
    change_leader(mesh, "ada", heir)
    try:
        places.settle(mesh, mode, [heir, *(name for name in places.leaders_of(mode) if name != "ada")])
        answered()
        assert " inet " not in mesh["ada"].host.run("ip", "addr", "show", "kilo0")
    finally:
        change_leader(mesh, heir, "ada")
    places.settle(mesh, mode)
    answered()
    seconds = time.monotonic() - begun
    for pinger in pingers.values():
        pinger.end()
    lost = {name: pinger.stop(5) for name, pinger in pingers.items()}
    gaps = {name: pinger.longest_silence() for name, pinger in pingers.items()}
    for name, pinger in pingers.items():
        assert pinger.sent > seconds / INTERVAL / 3, f"{name}: only {pinger.sent} pings in {seconds:.0f} s"
        figure = f"{name}: {len(lost[name])} of {pinger.sent} pings lost, {gaps[name]:.2f} s without answer"
        record_property(FIGURE, figure)
    for name in within:
        assert lost[name] == [], f"{name}: {len(lost[name])} of {within[name].sent} pings lost"
    for name in between:
        assert gaps[name] < GAP_SECONDS, f"{name}: no answer for {gaps[name]:.1f} s"


def test_an_agent_that_ends_leaves_nothing(mesh: Mesh) -> None:
    """Of a leader and of another host, the last in this mode; they are started again in the next.

    Nor a way in: IPIP reaches no pod, though its guard is gone.
    """
    for name in ("dan", "fay"):
        member = mesh[name]
        assert left_over(member, ("routes", "firewall", "nftables")), "there is something to leave"
        assert member.agent.terminate(SECONDS) == 0
        parts = left_over(member, STATE)
        links = [line for line in parts.pop("links", []) if "kilo0" not in line and "tunl0" not in line]
        assert (parts, links) == ({}, [])
        assert " inet " not in member.host.run("ip", "addr", "show", "tunl0", check=False)
        target, router = private_ip(mesh, member), mesh.underlay.sites["lisbon"].router
        assert member.pod
        with member.pod.open_ping_socket() as pod:
            packet = ipip("172.16.3.1", target, mesh["cem"].address, member.address, 0x5104)
            send_ipip(router, packet, target)
            assert not heard(pod, 0x5104, 3), name
