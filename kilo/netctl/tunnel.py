"""The encapsulation device: tunl0, which is made here, or one that Flannel or Cilium owns.

Owned by others, it may appear, vanish and come back at any time, and is only used. Its address is
kilo.netctl.addresses' business.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping

from kilo.errors import TemporaryError
from kilo.model.plan import PlanItem, Tunnel
from kilo.netctl.host import Host, Roles
from kilo.netctl.netlink.messages import RTM_NEWLINK, LinkInfo, pack_link
from kilo.netctl.netlink.socket import NLM_F_CREATE, NLM_F_EXCL, KernelError, Netlink, Request
from kilo.netctl.reconcile import Outcome

KEY = "tunnel"
IPIP, FLANNEL, CILIUM = "tunl0", "flannel.1", "cilium_tunl"
NAMES = {"": (IPIP,), "flannel": (FLANNEL,), "cilium": (CILIUM, IPIP)}
"""Device names by the value of --compatibility; the first that exists is used."""
_KINDS = {"ipip": "", "flannel": "flannel", "cilium": "cilium"}
_IPIP_HEADER = 20


class TunnelDevice:
    """Keeps the role "tunnel" right, and tunl0 there while the plan wants it."""

    name = "tunnel"
    more = False

    def __init__(self, netlink: Netlink, host: Host, roles: Roles, compatibility: str) -> None:
        self._netlink = netlink
        self._host = host
        self._roles = roles
        self._compatibility = compatibility
        self._item: Tunnel | None = None
        self._failing = False

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        item = upserts.get(KEY)
        if isinstance(item, Tunnel):
            self._item = item
        elif KEY in removals:
            self._item = None

    def load(self) -> None:
        """Nothing: the worker keeps the host fresh."""

    def apply(self) -> list[Outcome]:
        try:
            changed = self._ensure()
        except TemporaryError as e:
            self._failing = True
            return [Outcome(KEY, f"tunnel: {e}")]
        outcome = [Outcome(KEY)] if changed or self._failing else []
        self._failing = False
        return outcome

    def prune(self) -> list[Outcome]:
        return []

    def clean_up(self) -> list[Outcome]:
        """Nothing: the device may be in use by others, and without addresses and routes it does nothing."""
        return []

    def _find(self) -> LinkInfo | None:
        """The device, if it is there."""
        names = NAMES[self._compatibility if self._item is None else _KINDS[self._item.kind]]
        found = (self._host.named(name) for name in names)
        return next((link for link in found if link is not None), None)

    def _ensure(self) -> bool:
        link = self._find()
        self._roles.assign("tunnel", link)
        if self._item is None or self._item.kind == "flannel":
            if self._item is not None and link is None:
                raise TemporaryError(f"{FLANNEL} does not exist: waiting for Flannel")
            return False
        changed = link is None
        if link is None:
            link = self._make()
        if link.name == IPIP and link.kind != "ipip":
            self._roles.assign("tunnel", None)
            raise TemporaryError(
                f"{IPIP} is of the kind {link.kind or 'hardware'}, no IPIP tunnel: left alone"
            )
        changed = self._set_link(link) or changed
        self._roles.assign("tunnel", self._find())
        return changed

    def _make(self) -> LinkInfo:
        """Create tunl0, which a kernel that has to load its module does by itself meanwhile."""
        try:
            self._change(pack_link(name=IPIP, kind="ipip"), NLM_F_CREATE | NLM_F_EXCL)
        except KernelError as e:
            if e.errno == errno.EOPNOTSUPP:
                raise TemporaryError(f"{IPIP}: the kernel has no IPIP (module ipip): {e}") from e
            if e.errno != errno.EEXIST:
                raise
            self._host.load()
        link = self._find()
        if link is None:
            raise TemporaryError(f"{IPIP} vanished as soon as it was made")
        return link

    def _set_link(self, link: LinkInfo) -> bool:
        """Up; and for tunl0 the private link's MTU less the IPIP header's 20 bytes."""
        private = self._roles.link("private")
        wanted = private.mtu - _IPIP_HEADER if private and link.name == IPIP else link.mtu
        mtu = wanted if wanted != link.mtu else 0
        up = None if link.up else True
        if not mtu and up is None:
            return False
        self._change(pack_link(link.number, mtu=mtu, up=up))
        return True

    def _change(self, body: bytes, flags: int = 0) -> None:
        (error,) = self._netlink.change([Request(RTM_NEWLINK, flags, body)])
        if error is not None:
            raise error
        self._host.load()
