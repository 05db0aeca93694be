"""Which networks may have a route through the mesh. Pure.

In the model because the planner and netctl's validator both ask: they must not disagree, or a network
without a route would stay in allowed IPs and firewall sets.
"""

from __future__ import annotations

from functools import lru_cache

from kilo.model.net import bounds, canonical_network, intersects, parse_interface

_CACHE = 1 << 16
WIDEST = {4: 8, 6: 7}
"""The shortest prefix by IP version: all private networks fit, and no two routes make a default route."""
_NEVER = (
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/3", "multicast and reserved"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
)
NEVER = tuple([network for network, _ in _NEVER])
"""Networks that no route may overlap: their addresses mean something else on every host."""


@lru_cache(_CACHE)
def unroutable(network: str) -> str:
    """Why ``network`` (Network or Interface form) may have no route, "" if it may.

    A whole sentence: "0.0.0.0/0 is as wide as a default route (…)".
    """
    version = bounds(network)[0]
    if parse_interface(network)[1] < WIDEST[version]:
        return (
            f"{canonical_network(network)} is as wide as a default route"
            f" (an IPv{version} network needs a prefix of at least /{WIDEST[version]})"
        )
    for never, kind in _NEVER:
        if intersects(network, never):
            return f"{canonical_network(network)} is not to be routed ({kind} addresses, {never})"
    return ""
