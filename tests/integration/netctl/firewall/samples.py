"""Plans of the firewall, and what the host's own programs say of its rules: what several tests share."""

from __future__ import annotations

from kilo.netctl.firewall.choice import Kind
from tests.integration.netctl.firewall.hosts import PROGRAMS, Namespace, entries, policy

SAMPLE = entries(
    masquerade_from="10.2.0.0/24 10.5.0.1/32",
    no_masquerade_to="10.2.0.0/24 10.2.1.0/24 10.4.0.1/32",
    forward_accept_from="10.2.0.0/24",
    forward_accept_to="10.2.0.0/24",
    ipip_accept_from="10.1.0.10/32",
)
OF_BOTH_FAMILIES = entries(
    masquerade_from="10.2.0.0/24 2001:db8:2::/64",
    no_masquerade_to="10.2.0.0/24 10.2.1.0/24 2001:db8:2::/64 2001:db8:3::/64",
)
ALL = policy(guard=True, forward=True)
SETS = [True, False]
"""With ipset and without."""


def saved(host: Namespace, kind: Kind) -> list[str]:
    """Every rule, chain and counter of the iptables of that kind, without the comments that have the time."""
    lines = [line for p in PROGRAMS[kind] for line in host.run(f"{p}-save", "-c").splitlines()]
    return [line for line in lines if not line.startswith("#")]


def foreign(host: Namespace, kind: Kind) -> list[str]:
    """Those of others."""
    return [line for line in saved(host, kind) if "KILO-" not in line and '"Kilo: ' not in line]
