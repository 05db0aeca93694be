"""Checks of the agent that runs here, by its own word, and of the paths to its peers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from kilo.config import Config
from kilo.doctor.finding import Finding
from kilo.model.host import WireGuardPeerState

OVERHEAD = {socket.AF_INET: 60, socket.AF_INET6: 80}
"""Bytes that WireGuard adds: the outer IP header, UDP's, and its own."""
HANDSHAKE_LIMIT = 180
"""Seconds for which a WireGuard session lasts."""
MOST_NAMED = 5
IP_MTU, IPV6_MTU = 14, 24
"""Socket options of Linux."""


def running(reasons: list[str]) -> Iterator[Finding]:
    """What ``kg status`` says: each reason is a finding of its own."""
    if not reasons:
        yield Finding("agent", "ok", "all its workers are ready, and its plan is applied")
    for reason in reasons:
        yield Finding("agent", "fail", reason, "kg status has the whole; the log of that worker says more")


def down(run_dir: str, parent: bool) -> Finding:
    """No worker is heard, though this user may hear them. ``parent``: that one answers."""
    if parent:
        mend = "look at the end of its log; if it has just been started, ask again in some seconds"
        return Finding("agent", "fail", "its parent runs, and none of its workers is heard", mend)
    found = (
        f"no agent runs here: nothing answers in {run_dir}. All else is judged by the flags of this command, "
        "and the defaults of those that are not given"
    )
    mend = (
        "start it (systemctl start kilo; of a pod, kubectl describe says why it is not there); the end of "
        "its log says why it ended. If it runs, give its --run-dir. Before an installation this is no fault"
    )
    return Finding("agent", "fail", found, mend)


def unknown(why: str) -> Finding:
    """This user may hear neither the workers nor the parent. ``why``: says so."""
    return Finding(
        "agent", "warn", why, "ask as root: whether an agent runs here cannot be told, nor its flags"
    )


def handshakes(peers: Mapping[str, WireGuardPeerState], now: float) -> Finding:
    """Peers that were heard once, and are not any more, although we send. ``now`` in Unix seconds."""
    silent = [
        peer
        for peer in peers.values()
        if peer.last_handshake and now - peer.last_handshake > HANDSHAKE_LIMIT and peer.sent_bytes
    ]
    never = [peer for peer in peers.values() if not peer.last_handshake and peer.sent_bytes]
    if not silent and not never:
        return Finding("handshakes", "ok", f"of {len(peers)} peers none is silent that is sent to")
    named = [f"{p.public_key[:8]}… at {p.endpoint_ip}:{p.endpoint_port}" for p in (*never, *silent)]
    found = (
        f"{len(never)} peers never answered, {len(silent)} not for 3 minutes: {', '.join(named[:MOST_NAMED])}"
    )
    mend = (
        "see that UDP reaches these endpoints from here (firewalls, NAT, a changed key); a peer without "
        "traffic for a while is no fault"
    )
    return Finding("handshakes", "warn", found, mend)


def path_mtus(config: Config, peers: Mapping[str, WireGuardPeerState]) -> Finding:
    """Whether packets of the interface's size fit what the kernel knows of the path to each endpoint."""
    try:
        mtu = int(Path("/sys/class/net", config.interface, "mtu").read_text())
    except OSError:
        return Finding("mtu", "unknown", f"there is no {config.interface}")
    tight = []
    for peer in peers.values():
        room = _room(peer.endpoint_ip, peer.endpoint_port) if peer.endpoint_ip else None
        if room is not None and room < mtu:
            tight.append((room, peer.endpoint_ip))
    if not tight:
        return Finding("mtu", "ok", f"{config.interface} has {mtu}, and every known path has room for it")
    room, where = min(tight)
    found = f"{config.interface} has {mtu}, but the path to {where} has room for {room} only"
    return Finding("mtu", "fail", found, f"give --mtu={room}, or less, on all nodes; or --mtu=auto")


def _room(ip: str, port: int) -> int | None:
    """The largest packet inside the tunnel that goes to ``ip`` in one piece, None if there is no way."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((ip, port or 1))
            if family == socket.AF_INET:
                path = probe.getsockopt(socket.IPPROTO_IP, IP_MTU)
            else:
                path = probe.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
        except OSError:
            return None
    return path - OVERHEAD[family]


def of_peers(config: Config, peers: Mapping[str, WireGuardPeerState]) -> Iterator[Finding]:
    """All that can be said of the peers that the agent has."""
    yield handshakes(peers, time.time())
    yield path_mtus(config, peers)
