"""The private key that the WireGuard interface has already: for when the key's file is gone.

Called by kilo.netctl.worker, at the start and only then.
"""

from __future__ import annotations

import contextlib

from kilo.netctl.host import Host
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.socket import Netlink
from kilo.netctl.wireguard.device import Device
from kilo.netctl.wireguard.kernel import Kernel
from kilo.netctl.wireguard.uapi import Userspace, answers


def held_key(interface: str, netlink: Netlink) -> PrivateKey | None:
    """The key of ``interface``; None if it does not exist, is not WireGuard's, or has none.

    Raises TemporaryError if it is there and does not answer: what key it has is not known then.
    """
    host = Host(netlink)
    host.load()
    link = host.named(interface)
    device: Device
    if link is not None and link.kind == "wireguard":
        device = Kernel(interface)
    elif link is not None and link.kind == "tun" and answers(interface):
        device = Userspace(interface)
    else:
        return None
    with contextlib.closing(device):
        return device.read().private_key
