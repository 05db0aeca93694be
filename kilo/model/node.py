"""What the cluster says: nodes and peers, as translated from Kubernetes objects."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from kilo.model.keys import PresharedKey

GRANULARITIES = ("location", "full")


class Endpoint(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Where a WireGuard peer receives packets.

    ``host`` is an address or a DNS name; ``ip`` is the address (equal to ``host`` unless that is
    a name; empty while a name is not resolved); ``port`` is 1 to 65535.
    """

    host: str
    port: int
    ip: str = ""

    def __str__(self) -> str:
        """``host:port``, with brackets around an IPv6 address, as Go prints it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UDPAddress(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="pascal"):
    """A discovered endpoint, in the JSON form of Go's net.UDPAddr: ``IP``, ``Port``, ``Zone``."""

    ip: str = msgspec.field(name="IP", default="")
    port: int = 0
    zone: str = ""


class Node(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="node"):
    """A node of the cluster, from its annotations, labels and spec.podCIDR.

    Empty text means "not given". ``last-seen`` is not here: liveness is the watcher's, and a
    check-in that changes nothing must compare equal. Forms as in kilo.model.net:
    ``internal_ip``, ``wireguard_ip`` and ``cni_compatibility_ip`` are Interface, ``subnet`` (the
    pod CIDR) is Network, ``allowed_location_ips`` Interface as Go keeps them.
    ``forced_endpoint`` and ``forced_internal_ip`` say that the force- annotations gave the value.
    ``persistent_keepalive`` is whatever int64 the Go agent computes of the annotation, in s.
    In ``discovered_endpoints``, None stands for an endpoint that was lost: none applies.
    ``control_plane``: the API server may run there, by the node's labels.
    ``doubtful``: whether it is alive is not known yet; it counts only if this host has its routes.
    ``created``: when the object was made, in Unix s, 0 if that is not known.
    """

    name: str
    key: str = ""
    endpoint: Endpoint | None = None
    forced_endpoint: bool = False
    internal_ip: str = ""
    no_internal_ip: bool = False
    forced_internal_ip: bool = False
    cni_compatibility_ip: str = ""
    leader: bool = False
    location: str = ""
    persistent_keepalive: int = 0
    subnet: str = ""
    wireguard_ip: str = ""
    discovered_endpoints: dict[str, UDPAddress | None] = {}
    allowed_location_ips: tuple[str, ...] = ()
    granularity: str = ""
    control_plane: bool = False
    doubtful: bool = False
    created: int = 0


class ApiServer(msgspec.Struct, frozen=True, gc=False, tag="api"):
    """Where the API server is, as IP, and whether this node reaches it now."""

    KEY: ClassVar[str] = "api"
    addresses: tuple[str, ...]
    reachable: bool

    @property
    def key(self) -> str:
        return self.KEY


class Peer(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="peer"):
    """A Peer resource: somebody outside the cluster who joins the mesh. ``persistent_keepalive`` in s.

    ``created`` as in Node.
    """

    name: str
    public_key: str
    allowed_ips: tuple[str, ...] = ()
    endpoint: Endpoint | None = None
    persistent_keepalive: int = 0
    preshared_key: PresharedKey | None = None
    created: int = 0


ClusterItem = Node | Peer | ApiServer


class Problem(msgspec.Struct, frozen=True, gc=False):
    """Why an object takes no part, or only in part: who, which field, the reason, since when (Unix s)."""

    kind: str
    name: str
    field: str
    reason: str
    since: int


class Announcement(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What this node's annotations are to say; the forms are those of Node."""

    endpoint: Endpoint | None = None
    internal_ip: str = ""
    key: str = ""
    wireguard_ip: str = ""
    discovered_endpoints: dict[str, UDPAddress] = {}
    granularity: str = ""
    cni_compatibility_ip: str = ""
