"""Who has the UDP port that WireGuard is to have.

Reads /proc, and only when a port could not be had. Called by kilo.netctl.interface.
"""

from __future__ import annotations

import errno
import pwd
import socket

from kilo.holders import UdpSocket, command, processes, udp_sockets

_SEARCH, _PATIENCE = 0.2, 0.8
"""Seconds of work for looking through processes (some thousands of them), and seconds in all."""


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
    """Finds out who has a port, and looks for the process again only when the socket is another."""

    def __init__(self) -> None:
        self._known: tuple[UdpSocket, str] | None = None

    def of(self, port: int) -> str:
        """Who it is, for a person; "" if nobody has it any more."""
        found = next(udp_sockets(port), None)
        if found is None:
            return ""
        if self._known is None or self._known[0] != found:
            self._known = found, _who(found)
        return self._known[1]


def _who(found: UdpSocket) -> str:
    pid = next(processes({found.inode}, _SEARCH, _PATIENCE), None)
    if pid is not None:
        return f"pid {pid} ({command(pid)})"
    try:
        name = pwd.getpwuid(found.uid).pw_name
    except KeyError:
        name = str(found.uid)
    hidden = "a process that netctl may not look at (kg doctor does), or the kernel, as for another device"
    return f"the user {name}: {hidden}"
