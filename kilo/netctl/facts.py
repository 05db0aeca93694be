"""What netctl reports of the host: interfaces and addresses, and what the node's name resolves to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from kilo.config import Config
from kilo.errors import ProtocolError
from kilo.model.host import HostFacts, Link
from kilo.model.net import ip_of, is_local, parse_ip
from kilo.netctl.host import Host
from kilo.netctl.tunnel import NAMES

CNI_BRIDGE = "kube-bridge"


def host_facts(
    host: Host, config: Config, public_key: str, hostname_ips: tuple[str, ...], wireguard: str
) -> HostFacts:
    """The facts, from what is known of the host. ``wireguard`` as in HostFacts.

    Loopback and link-local addresses are left out: they identify nobody, and every pod's veth has one.
    """
    links = []
    uplinked = host.uplinked()
    for number, link in sorted(host.links.items()):
        held = host.addresses.get(number, {})
        addresses = tuple(interface for interface in held if not is_local(ip_of(interface)))
        if addresses or link.name == config.interface:
            links.append(
                Link(
                    link.name,
                    number,
                    link.mtu,
                    link.kind,
                    link.up,
                    addresses,
                    carrier=number in host.carried,
                    uplink=number in uplinked,
                )
            )
    default = host.links.get(host.default_link)
    return HostFacts(
        public_key=public_key,
        hostname_ips=hostname_ips,
        links=tuple(links),
        default_link=default.name if default else "",
        ignored_links=(config.interface, *NAMES[config.compatibility], CNI_BRIDGE),
        wireguard=wireguard,
    )


def resolve(hostname: str) -> tuple[str, ...]:
    """The addresses of a name, canonical, in the resolver's order; none if it does not resolve."""
    try:
        answers = socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    found: dict[str, None] = {}
    for answer in answers:
        with contextlib.suppress(ProtocolError):
            found[str(parse_ip(str(answer[4][0])))] = None
    return tuple(found)


class HostnameIPs:
    """Resolves the node's name off the loop. The first answer is kept: the node's choice of its own
    address must not change because a name server does.

    ``post`` hands a callback to the loop; ``on_answer`` is called there after every try.
    """

    def __init__(
        self, hostname: str, post: Callable[[Callable[[], None]], None], on_answer: Callable[[], None]
    ) -> None:
        self.addresses: tuple[str, ...] = ()
        self._hostname = hostname
        self._post = post
        self._on_answer = on_answer
        self._asking = False

    def ask(self) -> None:
        """Try, unless there is an answer already or somebody is waiting for one."""
        if self.addresses or self._asking or not self._hostname:
            return
        self._asking = True
        threading.Thread(target=self._resolve, name="resolver", daemon=True).start()

    def _resolve(self) -> None:
        addresses = resolve(self._hostname)
        self._post(lambda: self._answered(addresses))

    def _answered(self, addresses: tuple[str, ...]) -> None:
        self._asking = False
        self.addresses = addresses
        self._on_answer()
