"""What netctl reports about this host, and every worker about itself."""

from __future__ import annotations

import msgspec


class Link(msgspec.Struct, frozen=True, gc=False):
    """A network interface that holds at least one address (Interface form), or the WireGuard one.

    ``carrier``: the link has had a carrier since it was set up. ``uplink``: a bridge that has a port which is
    neither a container's nor a virtual machine's.
    """

    name: str
    index: int
    mtu: int
    kind: str = ""
    up: bool = True
    addresses: tuple[str, ...] = ()
    carrier: bool = True
    uplink: bool = False


class HostFacts(msgspec.Struct, frozen=True, gc=False):
    """What the planner must know of the host.

    ``public_key``: base64. ``hostname_ips``: addresses to which the node's name resolves.
    ``default_link``: name of the default route's interface, "" if there is none.
    ``ignored_links``: the WireGuard, tunnel and CNI bridge interfaces, whose addresses identify nobody.
    ``wireguard``: "kernel", "userspace" or "" (not there yet).
    """

    public_key: str
    hostname_ips: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    default_link: str = ""
    ignored_links: tuple[str, ...] = ()
    wireguard: str = ""


class WireGuardPeerState(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One peer as the device knows it. ``last_handshake`` in Unix seconds, 0 for never; ``allowed_ips``
    are Networks, in order."""

    public_key: str
    endpoint_ip: str = ""
    endpoint_port: int = 0
    last_handshake: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    allowed_ips: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True, gc=False):
    """Something that does not work now: the message, and since when (Unix s)."""

    message: str
    since: int


class Sandbox(msgspec.Struct, frozen=True, gc=False):
    """What a process may, as the kernel says: its user and groups, its capabilities by name, whether it can
    gain none (``no_new_privs``) and has a seccomp filter; and by its own word the version of Landlock's
    interface that it is restricted by, 0 for none, and ``refused``: what should have been and is not."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    capabilities: tuple[str, ...]
    no_new_privs: bool
    seccomp: bool
    landlock: int = 0
    refused: tuple[str, ...] = ()


class WorkerState(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A worker about itself, sent at every heartbeat (about one a second).

    ``phase``: starting, ready, stopping. ``failing``: what does not work now, by a stable key.
    ``errors``: count by event, as kilo_errors_total has them. ``gauges``: name to value, metric
    names without the ``kilo_`` prefix. ``info``: short facts for a person. ``sandbox``: what it may.
    """

    worker: str
    pid: int
    started: float
    phase: str
    beat: int
    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    open_fds: int = 0
    failing: dict[str, Failure] = {}
    errors: dict[str, int] = {}
    gauges: dict[str, float] = {}
    info: dict[str, str] = {}
    sandbox: Sandbox | None = None
