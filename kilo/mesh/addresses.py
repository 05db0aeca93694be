"""Which of a host's addresses identify it: one for its neighbours, one for the rest of the world.

The order is squat/kilo's (pkg/mesh/discoverips.go): addresses to which the node's name resolves, if
they are assigned here, then those of the default route's interface, then any. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from kilo.model.host import HostFacts
from kilo.model.net import contains, ip_of, is_local, is_private, version_of

CILIUM_LINK = "cilium_host"


class HostAddresses(NamedTuple):
    """Both in Interface form. ``private`` may be ""; ``public`` falls back on it, and is "" if that is."""

    private: str
    public: str


def detect(facts: HostFacts, internal_cidrs: Iterable[str] = ()) -> HostAddresses:
    """The addresses of a host. ``internal_cidrs`` (Network): if any, only these hold private ones."""
    within = tuple(internal_cidrs)
    private, public = "", ""
    for interface in _in_order(facts):
        ip = ip_of(interface)
        if not is_private(ip):
            public = public or interface
        elif not private and (not within or any(contains(network, ip) for network in within)):
            private = interface
    return HostAddresses(private, public or private)


def private_addresses(facts: HostFacts) -> list[str]:
    """Every address (Interface form) that could be the private one, the best first."""
    return list(dict.fromkeys(interface for interface in _in_order(facts) if is_private(ip_of(interface))))


def _in_order(facts: HostFacts) -> Iterator[str]:
    """Every address that can identify the host, the best first; some come twice."""
    ignored = {ip_of(a) for link in facts.links if link.name in facts.ignored_links for a in link.addresses}
    assigned: dict[str, str] = {}
    default: list[str] = []
    for link in sorted(facts.links, key=lambda link: link.name):
        usable = [a for a in link.addresses if ip_of(a) not in ignored and not is_local(ip_of(a))]
        for interface in sorted(usable):
            assigned.setdefault(ip_of(interface), interface)
        if link.name == facts.default_link:
            default = usable
    yield from sorted([assigned[ip] for ip in facts.hostname_ips if ip in assigned], key=_rank)
    yield from sorted(default, key=_rank)
    yield from sorted(assigned.values(), key=_rank)


def _rank(interface: str) -> tuple[int, str]:
    """IPv4 before IPv6, then by text."""
    return version_of(interface), interface


def steady(facts: HostFacts, before: HostFacts | None) -> HostFacts:
    """Facts in which what is silent now stays as it was before: silence is not news.

    A name server that does not answer, or a default route that is away for a moment, must not give
    the host another identity. An interface that is gone is gone.
    """
    if before is None:
        return facts
    names = {link.name for link in facts.links}
    default = facts.default_link or (before.default_link if before.default_link in names else "")
    resolved = facts.hostname_ips or before.hostname_ips
    return msgspec.structs.replace(facts, default_link=default, hostname_ips=resolved)


def assigned_here(facts: HostFacts, interface: str) -> bool:
    """Whether the address of ``interface`` (Interface form, or "") is one of the host's."""
    if not interface:
        return False
    ip = ip_of(interface)
    return any(ip_of(a) == ip for link in facts.links for a in link.addresses)


def cilium_address(facts: HostFacts) -> str:
    """The IPv4 address of Cilium's host interface (Interface form), "" if there is none."""
    for link in facts.links:
        if link.name == CILIUM_LINK:
            return next((a for a in link.addresses if version_of(a) == 4), "")
    return ""


def underlay_mtu(facts: HostFacts) -> int:
    """Bytes; that of the default route's interface, 0 if it is not known."""
    return next((link.mtu for link in facts.links if link.name == facts.default_link), 0)
