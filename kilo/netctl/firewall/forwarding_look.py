"""Reads the host's FORWARD chains, of legacy iptables and of nf_tables, and finds those that drop pods.

A packet passes every chain that there is, whichever firewall the agent uses. Reads only; a legacy table
that is not in use is not read, and nf_tables only if it changed since the last look. Works on the network
namespace of the calling thread. Called by kilo.netctl.firewall.reconciler.
"""

from __future__ import annotations

import struct
from functools import partial

from kilo.errors import TemporaryError
from kilo.netctl.firewall import xtables
from kilo.netctl.firewall.access import KERNEL, Access
from kilo.netctl.firewall.forwarding import Blocked, Pods, Rule, judge
from kilo.netctl.firewall.forwarding_rules import of_entry, of_form
from kilo.netctl.firewall.layout import FAMILIES as LEGACY_FAMILIES
from kilo.netctl.firewall.layout import chain_rules, policy_of
from kilo.netctl.firewall.nft_layout import TABLE
from kilo.netctl.firewall.nft_messages import FAMILIES, GETCHAIN, GETRULE, ChainInfo, parse_chain, parse_rule
from kilo.netctl.firewall.nft_socket import NftSocket, is_absence
from kilo.netctl.netlink.attributes import text

FILTER, FORWARD = "filter", "FORWARD"
_INET = 1
_FORWARD_HOOK, _DROP = 2, 0
_HEADER = struct.Struct(">BBH")
_FAMILY_NAMES = {FAMILIES[4]: "ip", FAMILIES[6]: "ip6", _INET: "inet"}
_PROGRAMS = {4: "iptables", 6: "ip6tables"}


class ForwardingLook:
    """``blocked`` may be called as often as one likes: nf_tables are read anew only if they changed."""

    def __init__(self, access: Access = KERNEL) -> None:
        self._access = access
        self._netlink: NftSocket | None = None
        self._seen: tuple[int, Pods] | None = None
        self._found: list[Blocked] = []

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
        self._netlink, self._seen = None, None

    def blocked(self, pods: Pods) -> list[Blocked]:
        """The chains that drop new flows of ``pods``. Raises TemporaryError."""
        return [*_in_legacy(pods), *self._in_nft(pods)]

    def _in_nft(self, pods: Pods) -> list[Blocked]:
        try:
            if self._netlink is None:
                self._netlink = self._access.nft()
            netlink = self._netlink
            generation = netlink.generation()
        except TemporaryError as e:
            if is_absence(e):
                return []
            raise
        if (generation, pods) != self._seen:
            self._found = [
                found
                for family in (FAMILIES[pods.version], _INET)
                for chain in _forward_chains(netlink, family)
                if (found := _judged_nft(netlink, family, chain, pods))
            ]
            self._seen = (generation, pods) if netlink.generation() == generation else None
        return self._found


def _in_legacy(pods: Pods) -> list[Blocked]:
    version = pods.version
    if not xtables.is_in_use(version, FILTER):
        return []
    try:
        info, block = xtables.raw_table(version, FILTER)
    except xtables.TableMissing:
        return []
    family = LEGACY_FAMILIES[version]

    def rules_of(chain: str) -> list[Rule]:
        return [of_entry(entry, pods) for entry in chain_rules(family, info, block, chain)]

    drops = policy_of(family, info, block, FORWARD) == "DROP"
    outward, inward, by_policy = judge(rules_of, FORWARD, drops)
    if not outward and not inward:
        return []
    program = f"{_PROGRAMS[version]}-legacy"
    where = f"FORWARD of legacy {_PROGRAMS[version]}"
    return [Blocked(where, by_policy, outward, inward, f"{program} -I FORWARD", "legacy")]


def _forward_chains(netlink: NftSocket, family: int) -> list[ChainInfo]:
    """The base chains that forwarded packets of a family pass, but for our own."""
    chains = map(parse_chain, netlink.dump(GETCHAIN, _HEADER.pack(family, 0, 0), optional=True))
    return [
        chain
        for chain in chains
        if chain.hook
        and chain.hook.number == _FORWARD_HOOK
        and chain.hook.type == FILTER
        and chain.table != TABLE
    ]


def _rules_of(netlink: NftSocket, family: int, table: str, pods: Pods, chain: str) -> list[Rule]:
    body = _HEADER.pack(family, 0, 0) + text(1, table) + text(2, chain)
    rules = map(parse_rule, netlink.dump(GETRULE, body, optional=True))
    forms = [rule.form for rule in rules if (rule.table, rule.chain) == (table, chain)]
    return [of_form(form, pods) for form in forms if form is not None]


def _judged_nft(netlink: NftSocket, family: int, chain: ChainInfo, pods: Pods) -> Blocked | None:
    drops = chain.hook is not None and chain.hook.policy == _DROP
    rules_of = partial(_rules_of, netlink, family, chain.table, pods)
    outward, inward, by_policy = judge(rules_of, chain.name, drops)
    if not outward and not inward:
        return None
    kind = _FAMILY_NAMES[family]
    if kind != "inet" and (chain.table, chain.name) == (FILTER, FORWARD):
        program = f"{_PROGRAMS[pods.version]}-nft"
        return Blocked(
            f"FORWARD of {program}", by_policy, outward, inward, f"{program} -I FORWARD", "nftables"
        )
    where = f"chain {chain.name} of nftables' table {kind} {chain.table}"
    insert = f"nft insert rule {kind} {chain.table} {chain.name}"
    return Blocked(where, by_policy, outward, inward, insert)
