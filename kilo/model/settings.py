"""What the flags say about the mesh, for the planner, which knows no flags."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, gc=False):
    """The flags that shape a plan, under their own names.

    ``subnet``, ``service_cidrs`` and ``internal_cidrs`` are Networks. ``mtu`` in bytes, 0 for ``auto``.
    """

    hostname: str
    mesh_granularity: str = "location"
    subnet: str = "10.4.0.0/16"
    port: int = 51820
    encapsulate: str = "always"
    compatibility: str = ""
    local: bool = True
    cni: bool = True
    iptables_forward_rules: bool = False
    service_cidrs: tuple[str, ...] = ()
    internal_cidrs: tuple[str, ...] = ()
    prioritise_private_addresses: bool = False
    mtu: int = 1420
