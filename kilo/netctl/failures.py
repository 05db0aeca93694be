"""The keys under which netctl reports what stops the whole data plane. Pure; each has one owner.

``kilo.netctl.progress`` judges by them.
"""

from __future__ import annotations

from collections.abc import Mapping

from kilo.model.host import Failure

HOST = "host"
"""Interfaces and addresses cannot be read, or a plan cannot be taken: kilo.netctl.passes."""
INTERFACE, SETTINGS, LINK = "interface", "interface/settings", "interface/link"
"""The WireGuard interface itself; key and port; MTU and up: kilo.netctl.interface."""
DEVICE = "wireguard"
"""The device does not answer: kilo.netctl.worker."""
TUNNEL, TUNNEL_LINK = "tunnel", "tunnel/link"
"""The tunnel device itself; its MTU, and up: kilo.netctl.tunnel."""
_ALL = "all "
_STOPPING = (HOST, INTERFACE, SETTINGS, LINK, DEVICE, TUNNEL, TUNNEL_LINK)


def all_of(kind: str) -> str:
    """The key for a reconciler that cannot do anything: kilo.netctl.passes."""
    return _ALL + kind


def stopped_by(failing: Mapping[str, Failure]) -> str:
    """The message of the failure that stops the data plane, "" if there is none."""
    found = [failing[key].message for key in _STOPPING if key in failing]
    found += [failure.message for key, failure in failing.items() if key.startswith(_ALL)]
    return found[0] if found else ""
