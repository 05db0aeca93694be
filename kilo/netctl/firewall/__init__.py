"""Masquerading, forwarding and the guard of IPIP: the host's firewall, as far as it is ours."""

from kilo.netctl.firewall.reconciler import Firewall

__all__ = ["Firewall"]
