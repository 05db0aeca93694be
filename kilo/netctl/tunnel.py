"""The encapsulation device: tunl0, which is made here, or one that Flannel or Cilium owns.

Owned by others, it may appear, vanish and come back at any time, and is only used. Its address is
kilo.netctl.addresses' business.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from kilo.errors import TemporaryError
from kilo.model.plan import PlanItem, Tunnel
from kilo.netctl.failures import TUNNEL, TUNNEL_LINK
from kilo.netctl.fights import Fights
from kilo.netctl.host import Host, Roles
from kilo.netctl.netlink.messages import RTM_NEWLINK, LinkInfo, pack_link
from kilo.netctl.netlink.socket import NLM_F_CREATE, NLM_F_EXCL, KernelError, Netlink, Request
from kilo.netctl.reconcile import Backoff, Outcome
from kilo.netctl.steps import NotYet, Steps, Waits

LASTING = 60.0
"""Seconds after which a device that was made has proved to last."""
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
        self.fights = Fights()
        self._netlink = netlink
        self._host = host
        self._roles = roles
        self._compatibility = compatibility
        self._item: Tunnel | None = None
        self._failing = False
        self._settled = False
        self._made: float | None = None
        self._circumstances = 0, 0
        """The link that was there last, and the MTU that it was to have."""
        self._clock: Callable[[], float] = time.monotonic
        self._backoff: Backoff[str] = Backoff()
        self._steps = Steps("tunnel")

    def update(self, upserts: Mapping[str, PlanItem], removals: Collection[str]) -> None:
        item = upserts.get(TUNNEL)
        if isinstance(item, Tunnel):
            self._item = item
        elif TUNNEL in removals:
            self._item = None
        else:
            return
        self._settled = False
        self._backoff.worked(TUNNEL)
        self._steps.again(TUNNEL_LINK)

    def load(self) -> None:
        """Nothing: the worker keeps the host fresh."""

    def apply(self) -> list[Outcome]:
        now = self._clock()
        try:
            made = self._ensure(now)
        except TemporaryError as e:
            if self._failing and isinstance(e, NotYet):
                return []
            self._failing = True
            return [Outcome(TUNNEL, f"tunnel: {e}", waits=isinstance(e, Waits))]
        outcomes = [Outcome(TUNNEL, repair=made and self._settled)] if made or self._failing else []
        self._failing = False
        change = self._link_change()
        outcomes += self._steps.take(
            TUNNEL_LINK, change, now, self.fights if self._settled and not made else None
        )
        self._roles.assign("tunnel", self._find())
        self._settled = self._settled or self._link_change() is None
        return outcomes

    def prune(self) -> list[Outcome]:
        return []

    def clean_up(self) -> list[Outcome]:
        """Nothing: kilo.netctl.unused sets it down, before the firewall stops guarding it."""
        return []

    def _find(self) -> LinkInfo | None:
        """The device, if it is there."""
        names = NAMES[self._compatibility if self._item is None else _KINDS[self._item.kind]]
        found = (self._host.named(name) for name in names)
        return next((link for link in found if link is not None), None)

    def _ensure(self, now: float) -> bool:
        """Find or make the device. True if it was made. Raises TemporaryError."""
        link = self._find()
        self._roles.assign("tunnel", link)
        if self._item is None:
            return False
        if self._item.kind == "flannel":
            if link is None:
                raise Waits(f"{FLANNEL} does not exist: waiting for Flannel")
            return False
        made = link is None
        if link is None:
            link = self._make(now)
        if link.name == IPIP and link.kind != "ipip":
            self._roles.assign("tunnel", None)
            raise Waits(f"{IPIP} is of the kind {link.kind or 'hardware'}, no IPIP tunnel: left alone")
        return made

    def _make(self, now: float) -> LinkInfo:
        """Create tunl0, which a kernel that has to load its module does by itself meanwhile."""
        if self._made is not None and now - self._made >= LASTING:
            self._backoff.worked(TUNNEL)
        if not self._backoff.due(TUNNEL, now):
            raise NotYet(f"{IPIP} is not there, or vanished again; it will be made again soon")
        self._backoff.failed(TUNNEL, now)
        self._made = None
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
        self._made = now
        return link

    def _link_change(self) -> Callable[[], None] | None:
        """How to set it up and, if it is tunl0, to the private link's MTU less the IPIP header's 20
        bytes; None if that is not needed."""
        link, private = self._find(), self._roles.link("private")
        if link is None or self._item is None or self._item.kind == "flannel":
            return None
        wanted = private.mtu - _IPIP_HEADER if private and link.name == IPIP else link.mtu
        mtu = wanted if wanted != link.mtu else 0
        up = None if link.up else True
        if (link.number, wanted) != self._circumstances:
            self._circumstances = link.number, wanted
            self._steps.again(TUNNEL_LINK)
        if not mtu and up is None:
            return None
        return partial(self._change, pack_link(link.number, mtu=mtu, up=up))

    def _change(self, body: bytes, flags: int = 0) -> None:
        (error,) = self._netlink.change([Request(RTM_NEWLINK, flags, body)])
        if error is not None:
            raise error
        self._host.load()
