"""Three hosts made of network namespaces, and packets that show what a firewall does to traffic.

    pod 10.2.0.2 ── 10.2.0.1 host 198.51.100.1 ── 198.51.100.2 outside

``outside`` also has an address of another node's pod, 10.2.1.5, and one of nobody's, 203.0.113.9.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from kilo.config import Config
from kilo.log import Logger
from kilo.model.plan import Firewall as Policy
from kilo.model.plan import FirewallSet, PlanItem, SetEntry
from kilo.netctl.firewall import Firewall
from kilo.netctl.firewall.backend import Backend
from kilo.netctl.firewall.choice import Kind
from kilo.netctl.firewall.ipset import Ipset, IpsetMissing
from kilo.netctl.firewall.legacy import LegacyBackend
from kilo.netctl.firewall.nft import NftBackend
from kilo.netctl.firewall.selected import SelectedBackend
from kilo.netctl.reconcile import Outcome

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
SO_RCVBUFFORCE = 33
POD, POD6 = "10.2.0.2", "2001:db8:2::2"
HOST, HOST6 = "198.51.100.1", "2001:db8:1::1"
OUTSIDE = "198.51.100.2"
KNOWN, KNOWN6 = "10.2.1.5", "2001:db8:3::5"
STRANGER, STRANGER6 = "203.0.113.9", "2001:db8:9::9"
_LINKS = f"""
addr add 10.2.0.1/24 dev pod
addr add 2001:db8:2::1/64 dev pod nodad
addr add {HOST}/24 dev outside
addr add {HOST6}/64 dev outside nodad
link set lo up
link set pod up
link set outside up
route add 10.2.1.0/24 via {OUTSIDE}
route add 203.0.113.0/24 via {OUTSIDE}
route add 2001:db8:3::/64 via 2001:db8:1::2
route add 2001:db8:9::/64 via 2001:db8:1::2
"""
_POD = f"""
addr add {POD}/24 dev eth0
addr add {POD6}/64 dev eth0 nodad
link set lo up
link set eth0 up
route add default via 10.2.0.1
route add default via 2001:db8:2::1
"""
_OUTSIDE = f"""
addr add {OUTSIDE}/24 dev eth0
addr add 2001:db8:1::2/64 dev eth0 nodad
addr add {KNOWN}/32 dev lo
addr add {STRANGER}/32 dev lo
addr add {KNOWN6}/128 dev lo nodad
addr add {STRANGER6}/128 dev lo nodad
link set lo up
link set eth0 up
route add default via {HOST}
route add default via {HOST6}
"""
_libc = ctypes.CDLL(None, use_errno=True)
_count = itertools.count()
_ports = itertools.count(20000)


class Namespace:
    """A network namespace with a thread inside it."""

    def __init__(self) -> None:
        self.name = f"kgt-{os.getpid()}-fw{next(_count)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.at_end = contextlib.ExitStack()
        """What is to be closed when the namespace goes."""
        self._thread = ThreadPoolExecutor(1, self.name)
        self.call(self._enter)

    def _enter(self) -> None:
        with open(f"/run/netns/{self.name}") as f:
            assert _libc.setns(f.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())

    def start(self, function: Callable[[], T]) -> Future[T]:
        """Have the thread inside run ``function``."""
        return self._thread.submit(function)

    def call(self, function: Callable[[], T]) -> T:
        return self.start(function).result()

    def beside(self, *command: str, text: str = "") -> str:
        """As ``run``, but while the thread inside is busy."""
        inside = ("ip", "netns", "exec", self.name, *command)
        return subprocess.run(inside, input=text, check=True, capture_output=True, text=True).stdout

    def run(self, *command: str, text: str = "") -> str:
        """The standard output of a program that runs inside. Raises CalledProcessError."""
        done = self.call(
            lambda: subprocess.run(command, input=text, check=True, capture_output=True, text=True)
        )
        return done.stdout

    def ip(self, batch: str) -> None:
        self.run("ip", "-batch", "-", text=batch)

    def sysctl(self, key: str, value: str) -> None:
        def write() -> None:
            with open("/proc/sys/" + key, "w") as f:
                f.write(value)

        self.call(write)

    def close(self) -> None:
        self.at_end.close()
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "delete", self.name], check=True)


class Hosts:
    """The three, wired; ``host`` forwards."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.pod, self.host, self.outside = (self._made(stack) for _ in range(3))
        for other, name in ((self.pod, "pod"), (self.outside, "outside")):
            self.host.ip(f"link add {name} type veth peer name eth0 netns {other.name}")
        for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.host.sysctl(key, "1")
        self.host.ip(_LINKS)
        self.pod.ip(_POD)
        self.outside.ip(_OUTSIDE)

    @staticmethod
    def _made(stack: contextlib.ExitStack) -> Namespace:
        namespace = Namespace()
        stack.callback(namespace.close)
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")  # a second and a half otherwise
        return namespace


@contextlib.contextmanager
def hosts() -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        yield Hosts(stack)


def no_ipset() -> Ipset:
    """What Ipset does on a kernel without it."""
    raise IpsetMissing("netfilter netlink: invalid argument")


class Clock:
    """Monotonic seconds that pass when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


PROGRAMS: dict[Kind, tuple[str, str]] = {
    "legacy": ("iptables-legacy", "ip6tables-legacy"),
    "nftables": ("iptables-nft", "ip6tables-nft"),
}
"""The iptables of a host that uses the one or the other firewall."""


class Agent:
    """The firewall of one host, driven as the worker does it; of one ``kind``, with ipset or without.

    With ``flag``, the value of --firewall, the kind is found out.
    """

    def __init__(
        self,
        host: Namespace,
        sets: bool = True,
        log: Logger | None = None,
        kind: Kind = "legacy",
        flag: str = "",
        interface: str = "kilo0",
    ) -> None:
        log = log or Logger("netctl", "none")
        new_ipset = Ipset if sets else no_ipset
        self.kind = kind
        self.clock = Clock()
        self.backend: Backend
        if flag:
            self.backend = SelectedBackend(flag, log, new_ipset, self.clock)
        else:
            self.backend = (LegacyBackend if kind == "legacy" else NftBackend)(log, new_ipset, self.clock)
        self._host = host
        self.firewall = Firewall(Config(interface=interface), log, self.backend)
        host.at_end.callback(self.firewall.close)
        self._host.call(self.firewall.load)

    @property
    def iptables(self) -> tuple[str, str]:
        """The host's programs for IPv4 and for IPv6."""
        return PROGRAMS[self.kind]

    def plan(self, *items: PlanItem, without: tuple[PlanItem, ...] = ()) -> list[Outcome]:
        """Change the plan, and do what it says."""
        upserts = {item.key: item for item in items}
        self.firewall.update(upserts, [item.key for item in without])
        return self.step()

    def step(self) -> list[Outcome]:
        return self._host.call(lambda: self.firewall.apply() + self.firewall.prune())

    def lose(self, *routes: str) -> list[Outcome]:
        """A pass in which the routes to these networks, and no others, turn out not to stand."""
        outcomes = self._host.call(self.firewall.apply)
        self.firewall.leave_out(set(routes))
        return outcomes + self._host.call(self.firewall.prune)

    def look_anew(self) -> None:
        """Have nf_tables change elsewhere, so that the next look does not end at finding that it has not."""
        self._host.run("nft", "add table inet other; delete table inet other")

    def prune_after_a_look(self) -> list[Outcome]:
        """What the worker does when it is told to look again in the middle of a pass."""
        self._host.call(self.firewall.load)
        return self._host.call(self.firewall.prune)

    def resync(self) -> list[Outcome]:
        """Read the kernel, and do what differs."""
        self._host.call(self.firewall.load)
        return self.step()

    def clean_up(self) -> list[Outcome]:
        return self._host.call(self.firewall.clean_up)


def entries(**sets: str) -> list[PlanItem]:
    """Members of sets, each given as words."""
    names: dict[str, FirewallSet] = {
        "masquerade_from": "masquerade_from",
        "masquerade_to": "masquerade_to",
        "no_masquerade_to": "no_masquerade_to",
        "forward_accept_from": "forward_accept_from",
        "forward_accept_to": "forward_accept_to",
        "ipip_accept_from": "ipip_accept_from",
    }
    return [SetEntry(names[name], network) for name, text in sets.items() for network in text.split()]


def policy(guard: bool = False, forward: bool = False) -> Policy:
    return Policy(ipip_guard=guard, forward=forward)


def errors(outcomes: list[Outcome]) -> list[str]:
    return [outcome.error for outcome in outcomes if outcome.error]


def add_foreign_rules(host: Namespace, kind: Kind) -> None:
    """What others have: chains of their own, every kind of extension, policies, and counters.

    A policy's own counters start anew with every commit of libiptc, of whichever program.
    """
    host.run("ipset", "-exist", "create", "others", "hash:net")
    for program, address in zip(PROGRAMS[kind], ("203.0.113.1", "2001:db8::1"), strict=True):
        match_set = "" if "6" in program else "-m set --match-set others src"
        host.run(
            f"{program}-restore",
            "-c",
            text=f"""*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
[3:300] -A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
[4:400] -A POSTROUTING -d {address} -j MASQUERADE --random-fully
[5:500] -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
[6:600] -A KUBE-POSTROUTING -m comment --comment "not Kilo: this" -j MASQUERADE
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:MINE - [0:0]
[10:1000] -A INPUT -p tcp -m multiport --dports 22,80:90 -m conntrack --ctstate NEW -j ACCEPT
[11:1100] -A INPUT -i lo -g MINE
[12:1200] -A FORWARD {match_set} -m limit --limit 5/min -j LOG --log-prefix "seen "
[13:1300] -A MINE ! -s {address} -j DROP
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
[14:1400] -A FORWARD -o ppp0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1400
[15:1500] -A FORWARD -i kilo0 -j MARK --set-xmark 0x10/0x10
COMMIT
""",
        )


def go_rules(nodes: int) -> str:
    """What the Go agent makes of a mesh with that many nodes, as it stands on a leader."""
    forward, nat, ipip, jumps = [], [], [], []
    for n in range(nodes):
        pods, address = f"10.{n // 250 + 10}.{n % 250}.0/24", f"10.1.{n // 250}.{n % 250 + 1}/32"
        jumps.append(
            f'-A POSTROUTING -s {pods} -m comment --comment "Kilo: jump to KILO-NAT chain" -j KILO-NAT'
        )
        nat.append(f'-A KILO-NAT -d {pods} -m comment --comment "Kilo: do not NAT" -j RETURN')
        forward.append(
            f'-A FORWARD -s {pods} -m comment --comment "Kilo: forward packets from the pod subnet" -j ACCEPT'
        )
        forward.append(
            f'-A FORWARD -d {pods} -m comment --comment "Kilo: forward packets to the pod subnet" -j ACCEPT'
        )
        ipip.append(f'-A KILO-IPIP -s {address} -m comment --comment "Kilo: allow IPIP traffic" -j ACCEPT')
    lines = [
        "*nat",
        ":KILO-NAT - [0:0]",
        *jumps,
        '-A POSTROUTING -d 10.77.0.0/16 -m comment --comment "Kilo: jump to NAT chain" -j KILO-NAT',
        *nat,
        '-A KILO-NAT -m comment --comment "Kilo: NAT remaining packets" -j MASQUERADE',
        "COMMIT",
        "*filter",
        ":KILO-IPIP - [0:0]",
        *forward,
        '-A INPUT -p 4 -m comment --comment "Kilo: jump to IPIP chain" -j KILO-IPIP',
        *ipip,
        '-A INPUT -p 4 -m comment --comment "Kilo: reject other IPIP traffic" -j DROP',
        "COMMIT",
        "",
    ]
    return "\n".join(lines)


PATIENT, BRIEF = 3.0, 0.3
"""Seconds to wait for a packet: one that should come, and one that should not."""


def source_seen(
    sender: Namespace, source: str, receiver: Namespace, destination: str, wait: float = PATIENT
) -> str:
    """The source address that a UDP packet arrives with, "" if it does not arrive."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    port = next(_ports)

    def listen() -> socket.socket:
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.bind((destination, port))
        s.settimeout(wait)
        return s

    def send() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.bind((source, 0))
            s.sendto(b"x", (destination, port))

    with receiver.call(listen) as listening:
        sender.call(send)
        try:
            return str(listening.recvfrom(16)[1][0])
        except TimeoutError:
            return ""


def ipip_arrives(
    sender: Namespace, source: str, receiver: Namespace, destination: str, wait: float = PATIENT
) -> bool:
    """Whether an IPv4 packet within IPv4 (or IPv6) gets past INPUT."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    inner = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20, 1, 0, 64, 255, 0, bytes(4), bytes(4))

    def listen() -> socket.socket:
        s = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_IPIP)
        s.settimeout(wait)
        return s

    def send() -> None:
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_IPIP) as s:
            s.bind((source, 0))
            s.sendto(inner, (destination, 0))

    with receiver.call(listen) as listening:
        sender.call(send)
        try:
            return inner in listening.recv(256)
        except TimeoutError:
            return False


def sources_seen(
    sender: Namespace, source: str, receiver: Namespace, destination: str, meanwhile: Callable[[], None]
) -> set[str]:
    """The source addresses of a stream of UDP packets, each a flow of its own, as they arrive.

    ``meanwhile`` begins once the first has arrived.
    """
    port, over = next(_ports), threading.Event()

    def listen() -> socket.socket:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        s.bind((destination, port))
        s.settimeout(PATIENT)
        return s

    def stream() -> None:
        while not over.wait(0.0002):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.bind((source, 0))
                s.sendto(b"x", (destination, port))

    found = set()
    with receiver.call(listen) as listening:
        streaming = sender.start(stream)
        try:
            found.add(str(listening.recvfrom(16)[1][0]))
            meanwhile()
        finally:
            over.set()
            streaming.result()
        listening.settimeout(BRIEF)
        with contextlib.suppress(TimeoutError):
            while True:
                found.add(str(listening.recvfrom(16)[1][0]))
    return found


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """The xtables lock, as by another program."""
    with file.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield
