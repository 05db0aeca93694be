"""What the mesh wants of this host: a plan is a mapping from key to item.

Keys make differences cheap: a plan moves over the bus as upserts and removals of single items.
Devices are named by role, never by name or index: netctl alone decides which device has a role,
so that no plan can reach a device that is not ours.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kilo.model.keys import PresharedKey
from kilo.model.node import ApiServer

Device = Literal["wireguard", "private", "tunnel"]
FirewallSet = Literal[
    "masquerade_from",
    "masquerade_to",
    "no_masquerade_to",
    "forward_accept_from",
    "forward_accept_to",
    "ipip_accept_from",
]


class Interface(msgspec.Struct, frozen=True, gc=False, tag="interface"):
    """The WireGuard interface. ``address`` (Interface form) is "" on a node that does not lead.

    ``private_ip`` (Interface form, may be "") is the host address whose link has the role "private".
    ``subnet`` is the network of all WireGuard addresses.
    """

    up: bool
    mtu: int
    listen_port: int
    address: str
    private_ip: str
    subnet: str

    @property
    def key(self) -> str:
        return "interface"


class PlannedPeer(msgspec.Struct, frozen=True, gc=False, tag="peer", omit_defaults=True):
    """A WireGuard peer. ``endpoint_ip`` "" means: leave the endpoint to WireGuard.

    ``name``: the object that it stands for, for people: "node n1", "peer laptop".
    ``roams``: the endpoint is only a first guess, what WireGuard learnt itself is newer.
    ``keepalive`` in seconds, 0 for none.
    """

    public_key: str
    allowed_ips: tuple[str, ...]
    endpoint_ip: str = ""
    endpoint_port: int = 0
    keepalive: int = 0
    preshared_key: PresharedKey | None = None
    roams: bool = False
    name: str = ""

    @property
    def key(self) -> str:
        return f"peer/{self.public_key}"


class Route(msgspec.Struct, frozen=True, gc=False, tag="route", omit_defaults=True):
    """A route; ``table`` 0 is the main table. ``via`` and ``src`` are IP or "" for none."""

    dst: str
    device: Device
    via: str = ""
    src: str = ""
    table: int = 0
    onlink: bool = False

    @property
    def key(self) -> str:
        return route_key(self.dst, self.table)


def route_key(dst: str, table: int = 0) -> str:
    """The key of the route to ``dst`` (Network); ``table`` 0 is the main table."""
    return f"route/{table}/{dst}"


class Rule(msgspec.Struct, frozen=True, gc=False, tag="rule", omit_defaults=True):
    """A policy rule. ``iif`` is a device role or "" for any; ``src`` and ``dst`` Network or ""."""

    table: int
    src: str = ""
    dst: str = ""
    iif: Literal["", "wireguard"] = ""

    @property
    def key(self) -> str:
        return f"rule/{self.table}/{self.src}/{self.dst}/{self.iif}"


class SetEntry(msgspec.Struct, frozen=True, gc=False, tag="entry", omit_defaults=True):
    """Membership of a network in one of the firewall's sets.

    ``route``: the network (Network form) of the route in the main table by which ``network`` is reached
    through the mesh; the entry counts only as long as that route can stand. "" if it needs none.
    """

    set: FirewallSet
    network: str
    route: str = ""

    @property
    def key(self) -> str:
        return f"entry/{self.set}/{self.network}"


class Firewall(msgspec.Struct, frozen=True, gc=False, tag="firewall"):
    """Which constant rules there are: with ``ipip_guard``, IPIP is accepted from ipip_accept_from alone.

    ``pods``: the node's pod CIDR (Network) if this agent attaches its pods; the host has to forward them.
    """

    ipip_guard: bool
    forward: bool
    pods: str = ""

    @property
    def key(self) -> str:
        return "firewall"


class Tunnel(msgspec.Struct, frozen=True, gc=False, tag="tunnel"):
    """The encapsulation device. ``kind``: ipip, flannel, cilium; ``address`` Interface form or ""."""

    kind: Literal["ipip", "flannel", "cilium"]
    address: str

    @property
    def key(self) -> str:
        return "tunnel"


class Summary(msgspec.Struct, frozen=True, gc=False, tag="summary", omit_defaults=True):
    """For people: what the plan amounts to. ``generation`` counts the plans that differed."""

    generation: int
    location: str
    leader: bool
    nodes: int
    peers: int
    segments: int

    @property
    def key(self) -> str:
        return "summary"


PlanItem = Interface | PlannedPeer | Route | Rule | SetEntry | Firewall | Tunnel | Summary | ApiServer


class CniTarget(msgspec.Struct, frozen=True, gc=False):
    """What the CNI configuration must say: the node's pod CIDR (Network) and the pods' MTU (bytes)."""

    pod_cidr: str
    mtu: int
