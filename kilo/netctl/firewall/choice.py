"""Which of the two firewalls the host uses, and why. Nothing is made, or changed, by looking.

kubelet makes a chain of a known name in the table mangle, and kube-proxy makes KUBE-… chains in
others: where those are, legacy tables or iptables-nft's, the host's other rules are too. Called by
kilo.netctl.firewall.selected.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Literal, NamedTuple

from kilo.errors import TemporaryError
from kilo.model.plan import Firewall
from kilo.netctl.firewall import xtables
from kilo.netctl.firewall.backend import member_of
from kilo.netctl.firewall.members import outermost
from kilo.netctl.firewall.nft_edits import Look, put_right
from kilo.netctl.firewall.nft_layout import TABLE, own_table
from kilo.netctl.firewall.nft_messages import GETTABLE, of_table, parse_chain
from kilo.netctl.firewall.nft_socket import NftSocket
from kilo.netctl.firewall.nft_state import Found
from kilo.netctl.netlink.socket import KernelError

Kind = Literal["legacy", "nftables"]
KUBE = "KUBE-"
KUBELETS = {("mangle", "KUBE-IPTABLES-HINT"), ("mangle", "KUBE-KUBELET-CANARY")}
_TABLES = ("mangle", "nat", "filter")
_KUBE_PROXY = "kube-proxy"
"""The table that kube-proxy has in its nftables mode."""

KubeChains = set[tuple[str, str]]
"""Table and name of chains called KUBE-…."""


class Choice(NamedTuple):
    """``reason`` is for a person. ``firm``: the host has shown it; else it may show something yet."""

    kind: Kind
    reason: str
    firm: bool = True


class Seen(NamedTuple):
    """What a look found. ``lacks``: why the kernel cannot do the nftables firewall, "" if it can."""

    legacy: KubeChains
    nftables: KubeChains
    kube_proxy: bool
    lacks: str


def decide(flag: str, look: Callable[[], Seen]) -> Choice:
    """The choice that the flag --firewall leaves, where that is ``auto``, to what ``look`` finds."""
    if flag == "legacy":
        return Choice("legacy", "--firewall")
    if flag == "nftables":
        return Choice("nftables", "--firewall")
    seen = look()
    if seen.lacks:
        return Choice("legacy", f"no nftables in the kernel: {seen.lacks}")
    of_kubelet = bool(seen.legacy & KUBELETS), bool(seen.nftables & KUBELETS)
    if of_kubelet == (True, False):
        return Choice("legacy", "kubelet's chains are in legacy tables")
    if of_kubelet == (False, True):
        return Choice("nftables", "kubelet's chains are in iptables-nft's tables")
    if len(seen.legacy) > len(seen.nftables):
        return Choice("legacy", f"{len(seen.legacy)} chains KUBE-… are in legacy tables")
    if seen.nftables:
        return Choice("nftables", f"{len(seen.nftables)} chains KUBE-… are in iptables-nft's tables")
    if seen.kube_proxy:
        return Choice("nftables", "kube-proxy has a table in nftables")
    return Choice("nftables", "no chains KUBE-…, and the kernel has nftables", firm=False)


def look(rehearse: bool = True) -> Seen:
    """Look at both. Raises TemporaryError.

    Without ``rehearse`` a kernel that has nftables counts as one that can do all that is needed.
    """
    legacy = _legacy_chains()
    try:
        netlink = NftSocket()
    except TemporaryError as e:
        return Seen(legacy, set(), False, str(e))
    try:
        lacks = _what_lacks(netlink) if rehearse else ""
        if lacks:
            return Seen(legacy, set(), False, lacks)
        return Seen(legacy, _nft_chains(netlink), _has_table(netlink, _KUBE_PROXY), "")
    finally:
        netlink.close()


def _legacy_chains() -> KubeChains:
    """Tables that are not in use are not read, since reading makes them."""
    found: KubeChains = set()
    for version in (4, 6):
        for table in _TABLES:
            if xtables.is_in_use(version, table):
                try:
                    found |= {(table, name) for name in xtables.chain_names(version, table, KUBE)}
                except xtables.TableMissing:
                    continue
    return found


def _nft_chains(netlink: NftSocket) -> KubeChains:
    chains = (parse_chain(message) for version in (4, 6) for message in netlink.chains(version))
    return {(c.table, c.name) for c in chains if c.table in _TABLES and c.name.startswith(KUBE)}


def _has_table(netlink: NftSocket, name: str) -> bool:
    for version in (4, 6):
        try:
            netlink.ask(GETTABLE, of_table(version, name))
        except KernelError:
            continue
        return True
    return False


def _what_lacks(netlink: NftSocket) -> str:
    """Why the kernel cannot have our table: it is made to check one, without making it.

    A kernel that has one can.
    """
    if _has_table(netlink, TABLE):
        return ""
    policy = Firewall(ipip_guard=True, forward=False)
    wanted = own_table(4, policy, ("kilo0",))
    member = Look(outermost([member_of("10.0.0.0/8")[1]]))
    works = put_right(4, Found(), wanted, dict.fromkeys(wanted.sets, member))
    refused = netlink.rehearse([request for work in works for request in work.requests])
    if refused is None:
        return ""
    if isinstance(refused.error, KernelError) and refused.error.errno == errno.EPERM:
        raise refused.error
    return str(refused.error)
