"""What the end-to-end tests look at: pings, peers, leaders, and what is left on a host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.lab import dataplane
from tests.lab.dataplane import WireGuardPeer, snapshot, wireguard_peers
from tests.lab.host import Host
from tests.lab.mesh import Member, Mesh

INTERVAL = 0.02


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs ``work`` in a thread meanwhile; it ends when the event that it is given is set."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def no_ping_lost(*pairs: tuple[Member, Member]) -> Iterator[None]:
    """Pings each pair of pods every 20 ms meanwhile, and fails if one is not answered."""
    begun = time.monotonic()
    pingers = {(a.name, b.name): a.pinger(b.address, INTERVAL) for a, b in pairs}
    try:
        yield
    finally:
        seconds = time.monotonic() - begun
        lost = {pair: pinger.stop() for pair, pinger in pingers.items()}
    for (a, b), losses in lost.items():
        sent = pingers[a, b].sent
        assert sent > seconds / INTERVAL / 3, f"only {sent} pings were sent"
        times = [f"{loss.sent - begun:.2f}" for loss in losses]
        assert not losses, f"{a} to {b}: {len(losses)} of {sent} pings lost, at second {times[:10]}"


def leads(member: Member) -> bool:
    """Whether the WireGuard interface of the host is up, as only that of a leader is."""
    flags = member.host.read("/sys/class/net/kilo0/flags")
    return bool(int(flags, 16) & 1)


def allowed_by_key(host: Host) -> dict[str, frozenset[str]]:
    """The allowed IPs of every peer."""
    return {key: peer.allowed_ips for key, peer in wireguard_peers(host).items()}


def peer_for(member: Member, network: str) -> WireGuardPeer | None:
    """The peer of the host that has ``network`` among its allowed IPs."""
    return dataplane.peer_for(member.host, network)


def all_know(mesh: Mesh, network: str) -> bool:
    """Whether every leader has a peer for ``network``, unless that is its own pod CIDR."""
    return all(peer_for(m, network) for m in mesh if leads(m) and m.pod_cidr != network)


def configuration(member: Member) -> dict[str, list[str]]:
    """Routes, rules, addresses and firewall of a host as sorted lines, without what traffic changes."""
    return dataplane.configuration(member.host)


def left_over(member: Member, parts: Sequence[str]) -> dict[str, list[str]]:
    """What is on the host that was not there before the agent, except what pods and addresses bring."""
    added = snapshot(member.host).added_since(member.before)
    kept = {
        part: [line for line in added.get(part, []) if line.strip() and not _of_pods(line)] for part in parts
    }
    return {part: lines for part, lines in kept.items() if lines}


def _of_pods(line: str) -> bool:
    """What the CNI plugins made, or the kernel by itself for an address."""
    return "kube-bridge" in line or "veth" in line or "proto kernel" in line or "CNI-" in line
