"""Which of a host's addresses identify it: one for its neighbours, one for the rest of the world.

The order is squat/kilo's (pkg/mesh/discoverips.go): addresses to which the node's name resolves, if
they are assigned here, then those of the default route's interface, then any. Stricter than that agent:
links that are down, dummies, and links of container networks give no internal IP, since every host has
the same address there; and a /32 beside a wider prefix is a service's, or a floating one. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from kilo.model.host import HostFacts, Link
from kilo.model.net import (
    PRIVATE_V4,
    PRIVATE_V6,
    bounds,
    contains,
    ip_of,
    is_local,
    is_private,
    version_of,
)

CILIUM_LINK = "cilium_host"
LOOPBACK_LINK = "lo"
_CONTAINER_NETWORK = re.compile(
    r"docker\d+|docker_gwbridge|br-[0-9a-f]{12}|(cni-)?podman\d+|nerdctl\d+|(cni|cbr)\d+|weave|datapath"
    r"|kube-(bridge|ipvs\d+|dummy-if)|nodelocaldns|flannel[.-].*|tunl0|vxlan(-v6)?\.calico|wireguard\.cali"
    r"|wg-v6\.cali|cilium_.*|antrea-.*|ovn-k8s-mp\d+|(lxd|lxc|incus|vir)br\d+"
)
"""Names of links that container networks make, and kube-proxy for the addresses of services."""


class HostAddresses(NamedTuple):
    """Both in Interface form. ``private`` may be ""; ``public`` falls back on it, and is "" if that is."""

    private: str
    public: str


class Withheld(NamedTuple):
    """A private address (Interface form) that is not the internal IP, its link, and why."""

    interface: str
    link: str
    reason: str


class _Candidate(NamedTuple):
    """An address in Interface form. ``unfit``: why its link gives no internal IP, ``""`` if it does.

    ``secondary``: a /32 beside a wider prefix. ``endpoint``: it may be the endpoint.
    """

    interface: str
    link: Link
    unfit: str
    secondary: bool
    endpoint: bool


def detect(facts: HostFacts, internal_cidrs: Iterable[str] = (), pod_cidr: str = "") -> HostAddresses:
    """The addresses of a host. ``internal_cidrs`` (Network): if any, only these hold private ones.
    ``pod_cidr`` (Network, or ""): what lies in it is pods' and their gateways'."""
    within = tuple(internal_cidrs)
    private, public, forced = "", "", ""
    for candidate in _in_order(facts, pod_cidr):
        interface = candidate.interface
        ip = ip_of(interface)
        if not is_private(ip):
            public = public or (interface if candidate.endpoint else "")
        elif within and not any(contains(network, ip) for network in within):
            continue
        elif not candidate.unfit:
            private = private or interface
        elif not forced and any(contains(network, ip) and _is_chosen(network) for network in within):
            forced = interface
    private = private or forced
    return HostAddresses(private, public or private)


def private_addresses(facts: HostFacts, pod_cidr: str = "") -> list[str]:
    """Every address (Interface form) that could be the private one, the best first."""
    fit = (c.interface for c in _in_order(facts, pod_cidr) if not c.unfit)
    return list(dict.fromkeys(interface for interface in fit if is_private(ip_of(interface))))


def withheld(
    facts: HostFacts, internal_cidrs: Iterable[str] = (), pod_cidr: str = ""
) -> tuple[Withheld, ...]:
    """The private addresses that cannot be the internal IP because of their links, each once.

    Arguments as of ``detect``.
    """
    within = tuple(internal_cidrs)
    found = {}
    for interface, link, unfit, *_ in _in_order(facts, pod_cidr):
        ip = ip_of(interface)
        if unfit and is_private(ip) and (not within or any(contains(network, ip) for network in within)):
            found[interface] = Withheld(interface, link.name, unfit)
    return tuple(found.values())


def _is_chosen(network: str) -> bool:
    """Whether an --internal-cidr means certain links. One as wide as 10.0.0.0/8, or any other network that
    holds all private addresses of its kind, means none."""
    version, first, last = bounds(network)
    blocks = (bounds(block) for block in (*PRIVATE_V4, PRIVATE_V6))
    return any(v == version and f <= first and last <= t and last - first < t - f for v, f, t in blocks)


def _in_order(facts: HostFacts, pod_cidr: str) -> Iterator[_Candidate]:
    """Every address that can identify the host, the best first; some come twice."""
    ignored = {ip_of(a) for link in facts.links if link.name in facts.ignored_links for a in link.addresses}
    assigned: dict[str, _Candidate] = {}
    default: list[_Candidate] = []
    for link in sorted(facts.links, key=lambda link: link.name):
        usable = [a for a in link.addresses if ip_of(a) not in ignored and not is_local(ip_of(a))]
        found = [_candidate(interface, link, facts.default_link, pod_cidr) for interface in sorted(usable)]
        for candidate in found:
            known = assigned.get(ip_of(candidate.interface))
            if known is None or (known.unfit and not candidate.unfit):
                assigned[ip_of(candidate.interface)] = candidate
        if link.name == facts.default_link:
            default = found
    yield from sorted([assigned[ip] for ip in facts.hostname_ips if ip in assigned], key=_rank)
    for group in (default, assigned.values()):
        yield from sorted([c for c in group if not c.secondary], key=_rank)
    for group in (default, assigned.values()):
        yield from sorted([c for c in group if c.secondary], key=_rank)


def _candidate(interface: str, link: Link, default_link: str, pod_cidr: str) -> _Candidate:
    is_default = link.name == default_link
    unfit = "" if is_default else _unfit(link)
    if not is_default and not unfit and pod_cidr and contains(pod_cidr, ip_of(interface)):
        unfit = f"has it from the pod CIDR {pod_cidr}"
    container = bool(_CONTAINER_NETWORK.fullmatch(link.name))
    return _Candidate(
        interface, link, unfit, _is_secondary(interface, link), is_default or (link.up and not container)
    )


def _unfit(link: Link) -> str:
    """Why no address of a link without the default route is the internal IP, "" if one may be."""
    if not link.up:
        return "is down"
    if link.kind == "dummy":
        return "is a dummy"
    if _CONTAINER_NETWORK.fullmatch(link.name):
        return "is a link of a container network"
    if link.kind == "bridge" and not link.uplink:
        return "is a bridge of containers or virtual machines alone"
    return "" if link.carrier else "has no carrier"


def _is_secondary(interface: str, link: Link) -> bool:
    """Whether an address is a /32 beside a wider prefix: a floating or load balancer's address. The
    loopback's own wider prefix is not among its addresses here. In IPv6, DHCP gives a /128 to the host."""
    if not interface.endswith("/32") or version_of(interface) == 6:
        return False
    if link.name == LOOPBACK_LINK:
        return True
    return any(version_of(a) == 4 and not a.endswith("/32") for a in link.addresses)


def _rank(candidate: _Candidate) -> tuple[bool, int, str]:
    """IPv4 before IPv6, then by text; of the addresses of the node's name, a secondary one last."""
    return candidate.secondary, version_of(candidate.interface), candidate.interface


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
