"""Whether an address can be the endpoint of a WireGuard peer. Pure.

In the model because the planner, the watcher and netctl's validator all ask: they must not disagree.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

_CACHE = 1 << 16
_KINDS = {
    4: (
        ("0.0.0.0/8", "an unspecified address"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("224.0.0.0/4", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
    ),
    6: (
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("fe80::/10", "a link-local address"),
        ("ff00::/8", "a multicast address"),
    ),
}
_NETWORKS = {
    version: [(ipaddress.ip_network(network), kind) for network, kind in kinds]
    for version, kinds in _KINDS.items()
}


@lru_cache(_CACHE)
def unusable_endpoint(address: str) -> str:
    """Why no host of another network can be reached at ``address`` (an IP, a zone allowed), "" if one can.

    A whole sentence with the address in it: "127.0.0.1 is a loopback address".
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return f"{address!r} is not an IP address"
    # The kernel sends to an IPv4-mapped address by IPv4, so it is judged as the address inside it.
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    for network, kind in _NETWORKS[ip.version]:
        if ip in network:
            return f"{address} is {kind}"
    return ""
