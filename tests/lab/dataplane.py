"""What a host's kernel and WireGuard hold, read from outside without disturbing them."""

from __future__ import annotations

import base64
import re
import socket
from dataclasses import dataclass, field, replace
from difflib import unified_diff

from tests.lab.host import Host

CONFLIST = "/etc/cni/net.d/10-kilo.conflist"


@dataclass(frozen=True)
class WireGuardPeer:
    """A peer as the device knows it; ``last_handshake`` in Unix seconds, 0 for never."""

    endpoint: str = ""
    allowed_ips: frozenset[str] = frozenset()
    last_handshake: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    keepalive: int = 0


_NUMBERS = {
    "last_handshake_time_sec": "last_handshake",
    "rx_bytes": "received_bytes",
    "tx_bytes": "sent_bytes",
    "persistent_keepalive_interval": "keepalive",
}


def parse_uapi(text: str) -> dict[str, WireGuardPeer]:
    """The peers, by public key in base64, in the answer to ``get=1`` of WireGuard's control socket."""
    peers: dict[str, WireGuardPeer] = {}
    key = ""
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "public_key":
            key = base64.b64encode(bytes.fromhex(value)).decode()
            peers[key] = WireGuardPeer()
        elif key and name == "endpoint":
            peers[key] = replace(peers[key], endpoint=value)
        elif key and name == "allowed_ip":
            peers[key] = replace(peers[key], allowed_ips=peers[key].allowed_ips | {value})
        elif key and name in _NUMBERS:
            peers[key] = replace(peers[key], **{_NUMBERS[name]: int(value)})  # type: ignore[arg-type]
    return peers


def parse_dump(text: str) -> dict[str, WireGuardPeer]:
    """The peers, by public key, in what ``wg show INTERFACE dump`` prints."""
    peers = {}
    for line in text.splitlines()[1:]:
        key, _, endpoint, allowed, handshake, received, sent, keepalive = line.split("\t")
        peers[key] = WireGuardPeer(
            endpoint="" if endpoint == "(none)" else endpoint,
            allowed_ips=frozenset() if allowed == "(none)" else frozenset(allowed.split(",")),
            last_handshake=int(handshake),
            received_bytes=int(received),
            sent_bytes=int(sent),
            keepalive=0 if keepalive == "off" else int(keepalive),
        )
    return peers


def read_uapi(host: Host, interface: str = "kilo0") -> str:
    """What the control socket of a userspace WireGuard answers. Raises OSError where there is none."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(10)
        control.connect(str(host.path(f"/run/wireguard/{interface}.sock")))
        control.sendall(b"get=1\n\n")
        parts = []
        while part := control.recv(1 << 16):
            parts.append(part)
            if part.endswith(b"\n\n"):
                break
    return b"".join(parts).decode()


def wireguard_peers(host: Host, interface: str = "kilo0") -> dict[str, WireGuardPeer]:
    """The peers of a host's interface by public key; empty where there is no interface."""
    try:
        return parse_uapi(read_uapi(host, interface))
    except OSError:
        return parse_dump(host.run("wg", "show", interface, "dump", check=False))


def peer_for(host: Host, network: str) -> WireGuardPeer | None:
    """The peer of the host that has ``network`` among its allowed IPs."""
    found = wireguard_peers(host).values()
    return next((peer for peer in found if network in peer.allowed_ips), None)


def routes(host: Host) -> dict[str, str]:
    """The IPv4 routes of the main table, destination to device. One file is read, nothing started."""
    found = {}
    with open(f"/proc/{host.pid}/net/route", encoding="ascii") as file:
        next(file)
        for line in file:
            device, destination, _, _, _, _, _, mask, *_ = line.split()
            address = socket.inet_ntoa(bytes.fromhex(destination)[::-1])
            found[f"{address}/{int(mask, 16).bit_count()}"] = device
    return found


@dataclass(frozen=True)
class Snapshot:
    """Everything that an agent changes on a host, as text by what it is."""

    parts: dict[str, str] = field(default_factory=dict)

    def added_since(self, before: Snapshot) -> dict[str, list[str]]:
        """The lines, by part, that are here and were not in ``before``."""
        return self._lines(before, "+")

    def removed_since(self, before: Snapshot) -> dict[str, list[str]]:
        """The lines, by part, that were in ``before`` and are not here."""
        return self._lines(before, "-")

    def _lines(self, before: Snapshot, sign: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for part, text in self.parts.items():
            old = before.parts.get(part, "").splitlines()
            lines = list(unified_diff(old, text.splitlines(), n=0, lineterm=""))[2:]
            if changed := [line[1:] for line in lines if line[0] == sign]:
                found[part] = changed
        return found


_RULES = "grep -v -e '^#' -e '^[*]' -e '^COMMIT' -e '^:[A-Z]* [A-Z]'"
"""Keeps rules and chains that are not built in."""
_COMMANDS = {
    "wireguard": "wg show",
    "links": "ip -o -d link show type wireguard; ip -br addr",
    "routes": "ip route show table all type unicast; ip -6 route show table all type unicast proto static",
    "rules": "ip rule; ip -6 rule",
    "firewall": f"iptables-legacy-save | {_RULES}; ip6tables-legacy-save | {_RULES} | sed 's/^/ip6: /'",
    "sets": "ipset save | sort",
    "nftables": "nft list ruleset 2>/dev/null",
    "conflist": f"cat {CONFLIST} 2>/dev/null",
}


def snapshot(host: Host) -> Snapshot:
    """All that an agent changes on ``host``, with packet counters and tables without rules left out."""
    script = "; ".join(f"echo '%%% {part}'; {{ {command}; }}" for part, command in _COMMANDS.items())
    parts: dict[str, str] = {}
    name = ""
    for line in host.run("sh", "-c", script + "; true").splitlines():
        if line.startswith("%%% "):
            name = line[4:]
            parts[name] = ""
        else:
            parts[name] += line + "\n"
    return Snapshot(parts)


def configuration(host: Host) -> dict[str, list[str]]:
    """Routes, rules, addresses and firewall of a host as sorted lines, without what traffic changes."""
    taken = snapshot(host)
    parts = ("links", "routes", "rules", "firewall", "sets", "nftables")
    counters = re.compile(r"\[\d+:\d+\]|packets \d+ bytes \d+")
    return {part: sorted(counters.sub("", line) for line in taken.parts[part].splitlines()) for part in parts}
