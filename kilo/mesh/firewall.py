"""What the firewall must do, as sets of networks: constant rules refer to them, whatever the mesh's size.

The same as the rules of squat/kilo amount to (``Topology.Rules`` and the encapsulators). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kilo.mesh.topology import LOCATION, Topology
from kilo.model.net import single
from kilo.model.plan import FirewallSet
from kilo.model.settings import Settings

SETS: tuple[FirewallSet, ...] = (
    "masquerade_from",
    "masquerade_to",
    "no_masquerade_to",
    "forward_accept_from",
    "forward_accept_to",
    "ipip_accept_from",
)


@dataclass(frozen=True)
class FirewallPlan:
    """Members of each set (Network form, host bits as their source has them), and the guard of IPIP.

    Traffic from ``masquerade_from`` or to ``masquerade_to`` is masqueraded unless its destination is
    in ``no_masquerade_to``; ``forward_accept_*`` are accepted in FORWARD; with ``ipip_guard``, IPIP
    is accepted from ``ipip_accept_from`` alone.
    """

    ipip_guard: bool = False
    sets: dict[FirewallSet, set[str]] = field(default_factory=lambda: {name: set() for name in SETS})


def firewall(topology: Topology, settings: Settings) -> FirewallPlan:
    """The local node's firewall."""
    plan = FirewallPlan(ipip_guard=_guarded(topology, settings))
    sets = plan.sets
    if settings.cni:
        sets["masquerade_from"].add(topology.local.subnet)
    sets["masquerade_to"].update(topology.own.allowed_location_ips)
    known = sets["no_masquerade_to"]
    for segment in topology.segments:
        known.update(segment.allowed_ips)
    for peer in topology.peers:
        sets["masquerade_from"].update(peer.allowed_ips)
        known.update(peer.allowed_ips)
    known.update(settings.service_cidrs)
    if settings.cni and settings.iptables_forward_rules:
        forwarded = _forwarded(topology)
        sets["forward_accept_from"].update(forwarded)
        sets["forward_accept_to"].update(forwarded)
    if plan.ipip_guard and topology.location.startswith(LOCATION):
        sets["ipip_accept_from"].update(map(single, topology.own.private_ips))
    return plan


def _forwarded(topology: Topology) -> tuple[str, ...]:
    """A leader is the gateway of its whole segment, any other node of its own pods alone."""
    if not topology.leader:
        return (topology.local.subnet,)
    own = topology.own
    return (*own.cidrs, *own.allowed_location_ips, *map(single, own.private_ips))


def _guarded(topology: Topology, settings: Settings) -> bool:
    """Whether this agent runs an IPIP tunnel of its own, and so says who may send IPIP."""
    return (
        settings.encapsulate != "never"
        and settings.local
        and settings.compatibility != "flannel"
        and bool(topology.local.internal_ip)
    )
