"""What has the UDP port that WireGuard is to have: a process, or an interface, which has no process.

Reads /proc and the interfaces, and only when a port could not be had. Called by kilo.netctl.interface
and by ``kg doctor``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from kilo.errors import TemporaryError
from kilo.holders import UdpSocket, command, processes, udp_sockets
from kilo.netctl.netlink.messages import RTM_GETLINK, LinkInfo, list_links, parse_link, tunnel_port
from kilo.netctl.netlink.socket import Netlink
from kilo.netctl.sole import claimant
from kilo.netctl.wireguard.device import Device
from kilo.netctl.wireguard.held import open_device
from kilo.netctl.wireguard.uapi import socket_path

_SEARCH, _PATIENCE = 0.2, 0.8
"""Seconds of work for looking through processes (some thousands of them), and seconds in all."""
_ANOTHER_PORT = "give the agent another --port, and open that in firewalls"
_END = f"end that program, or {_ANOTHER_PORT}"


class PortHolder(NamedTuple):
    """What has a UDP port: ``name`` is for a person, ``remedy`` says how the port becomes free.

    ``link``: the interface, "" if it is none; ``pid``: the process, "" if there is none.
    """

    name: str
    remedy: str
    link: str = ""
    pid: str = ""

    @property
    def seen(self) -> bool:
        """Whether it could be found out; else ``name`` has only the user."""
        return bool(self.link or self.pid)


def is_free(port: int) -> bool:
    """Whether a device could have the UDP port, of IPv4 and of IPv6, on all addresses."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                return False  # other errors: no IPv6 here, say, which keeps no device from the port
    return True


def is_unheard_of(port: int) -> bool:
    """As ``is_free``, by what the kernel lists: nothing is bound, and nobody kept from it meanwhile."""
    return next(udp_sockets(port), None) is None


class Holder:
    """Finds out what has a port, and looks again only when the sockets are others."""

    def __init__(self) -> None:
        self._known: tuple[frozenset[UdpSocket], tuple[PortHolder, ...]] | None = None

    def of(self, port: int) -> tuple[PortHolder, ...]:
        """What has ``port``; nothing if it is free by now."""
        sockets = frozenset(udp_sockets(port))
        if self._known is None or self._known[0] != sockets:
            self._known = sockets, holders_of(port, sockets, _SEARCH, _PATIENCE)
        return self._known[1]


def holders_of(
    port: int, sockets: frozenset[UdpSocket], work: float = float("inf"), patience: float = float("inf")
) -> tuple[PortHolder, ...]:
    """What has ``port``, by interface, or else by process. ``work``, ``patience``: as for ``processes``."""
    if not sockets:
        return ()
    links = list(_links(port))
    pids: list[str] = []
    if any(link.kind == "tun" for link in links) or not links:
        pids = list(processes({found.inode for found in sockets}, work, patience))
    holders = []
    for link in links:
        pid = pids.pop(0) if link.kind == "tun" and pids else ""
        holders.append(_of_link(link, pid))
    holders += [PortHolder(f"pid {pid} ({command(pid)})", _END, pid=pid) for pid in pids]
    return tuple(holders) or (_unseen(next(iter(sockets)).uid),)


def _links(port: int) -> Iterator[LinkInfo]:
    """The interfaces of this network namespace that are up and have ``port``."""
    with contextlib.suppress(TemporaryError), contextlib.closing(Netlink()) as netlink:
        messages = netlink.dump(RTM_GETLINK, list_links())
        links = [(link, message) for message in messages if (link := parse_link(message))]
        for link, message in links:
            if link.up and tunnel_port(message) == port:
                yield link
        yield from wireguard_links((link for link, _ in links), port, open_device)


def wireguard_links(
    links: Iterable[LinkInfo], port: int, opened: Callable[[LinkInfo], Device]
) -> Iterator[LinkInfo]:
    """Those of ``links`` that are WireGuard's, up, and have ``port``: each device is asked."""
    for link in links:
        served = link.kind == "wireguard" or (link.kind == "tun" and os.path.exists(socket_path(link.name)))
        if not link.up or not served:
            continue
        # one that is gone, does not answer or may not be asked is not the one that can be named
        with contextlib.suppress(TemporaryError), contextlib.closing(opened(link)) as device:
            if device.read().listen_port == port:
                yield link


def _of_link(link: LinkInfo, pid: str) -> PortHolder:
    if link.kind not in ("wireguard", "tun"):
        return PortHolder(f"the {link.kind} interface {link.name}", _ANOTHER_PORT, link.name)
    program = f" of pid {pid} ({command(pid)})" if pid else ""
    agent = claimant(link.name)
    if agent is not None:
        by = f"pid {agent.pid}" if agent.pid else "a process that cannot be seen from here"
        remedy = f"an agent uses it ({by}): end that agent, or give one of the two another --port"
    else:
        remedy = (
            f"if an agent with another --interface left it, remove it: ip link delete {link.name}; "
            f"else {_ANOTHER_PORT}"
        )
    return PortHolder(f"the WireGuard interface {link.name}{program}", remedy, link.name, pid)


def _unseen(uid: int) -> PortHolder:
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    name = (
        f"a socket of the user {user}, of a process or of another network namespace's interface "
        "that cannot be seen from here"
    )
    return PortHolder(name, f"look for it on the host (ss -lunp; kg doctor as root), or {_ANOTHER_PORT}")
