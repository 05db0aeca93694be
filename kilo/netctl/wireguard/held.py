"""The WireGuard interface that is there already: its device, and the private key that it has.

The key is asked for when its file is gone: by kilo.netctl.worker at the start and only then, and by
kilo.netctl.diff. The device is for kilo.netctl.interface.
"""

from __future__ import annotations

import contextlib

from kilo.netctl.host import Host
from kilo.netctl.key import PrivateKey
from kilo.netctl.netlink.messages import LinkInfo
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
    if link is None or link.kind not in ("wireguard", "tun"):
        return None
    if link.kind == "tun" and not answers(interface):
        return None
    with contextlib.closing(open_device(link)) as device:
        return device.read().private_key


def open_device(link: LinkInfo) -> Device:
    """The device behind a link of the kind "wireguard", or, of the kind "tun", the program's that serves it.

    Raises TemporaryError.
    """
    return Kernel(link.name) if link.kind == "wireguard" else Userspace(link.name)
