"""Policy rules of the plan: what leads traffic to table 1107.

Ours are those with the rule protocol PROTOCOL; lookups of table 1107 that carry none are the Go
agent's, and are taken over. They stand at one priority, before the main table's rule.
"""

from __future__ import annotations

import errno
import socket

from kilo.model.net import version_of
from kilo.model.plan import PlanItem, Rule
from kilo.netctl.netlink.messages import (
    FAMILIES,
    PROTOCOL_BOOT,
    PROTOCOL_UNSPEC,
    RTM_DELRULE,
    RTM_GETRULE,
    RTM_NEWRULE,
    RuleInfo,
    list_rules,
    pack_rule,
    parse_rule,
)
from kilo.netctl.netlink.socket import NLM_F_CREATE, NLM_F_EXCL, Message, Netlink, Request
from kilo.netctl.objects import Objects, Withheld
from kilo.netctl.routes import KILO_TABLE, PROTOCOL
from kilo.netctl.show import rule_text

PRIORITY = 1107


class Rules(Objects[RuleInfo]):
    """``interface``: the name of the WireGuard interface, which rules may name as where packets enter."""

    name = "rules"
    kind = "rule"
    item_types = (Rule,)
    gone = frozenset((errno.ENOENT,))

    def __init__(self, netlink: Netlink, interface: str) -> None:
        super().__init__(netlink)
        self._interface = interface

    def _wanted(self, item: PlanItem) -> RuleInfo | Withheld:
        assert isinstance(item, Rule)  # noqa: S101 - item_types says so
        return RuleInfo(
            family=socket.AF_INET6 if version_of(item.dst or item.src) == 6 else socket.AF_INET,
            table=item.table,
            src=item.src,
            dst=item.dst,
            iif=self._interface if item.iif else "",
            priority=PRIORITY,
            protocol=PROTOCOL,
        )

    def _read(self) -> dict[str, RuleInfo]:
        found: dict[str, RuleInfo] = {}
        for family in FAMILIES:
            for message in self._netlink.dump(RTM_GETRULE, list_rules(family), optional=True):
                rule = parse_rule(message)
                if rule is not None and rule.family == family and is_ours(rule):
                    key = self._key_of(rule)
                    if key in found and found[key].protocol != PROTOCOL:
                        other = found.pop(key)
                        found[f"{key}#{other.priority}"] = other
                    found[key if key not in found else f"{key}#{rule.priority}"] = rule
        return found

    def _key_of(self, rule: RuleInfo) -> str:
        """The plan key of a rule that the kernel has; one with a ``#`` where no plan could mean it."""
        iif = "wireguard" if rule.iif == self._interface else f"#{rule.iif}" if rule.iif else ""
        return f"rule/{rule.table}/{rule.src}/{rule.dst}/{iif}"

    def _put(self, key: str, wanted: RuleInfo, actual: RuleInfo | None) -> list[Request]:
        """A rule cannot be changed: the new one comes first, then the old one goes."""
        requests = [Request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, pack_rule(wanted))]
        return requests if actual is None else requests + self._drop(key, actual)

    def _drop(self, key: str, actual: RuleInfo) -> list[Request]:
        return [Request(RTM_DELRULE, 0, pack_rule(actual))]

    def _shown(self, key: str, actual: RuleInfo) -> str:
        return rule_text(actual)

    def take(self, message: Message) -> bool:
        """Take an event in, unless we caused it. True if a rule of ours is not as it was."""
        if message.port == self._netlink.port or message.kind not in (RTM_NEWRULE, RTM_DELRULE):
            return False
        rule = parse_rule(message)
        if rule is None or rule.protocol != PROTOCOL:
            return False
        key = self._key_of(rule)
        actual = self.delta.actual.get(key)
        if message.kind == RTM_NEWRULE:
            if actual == rule:
                return False
            self.delta.seen(key if actual is None else f"{key}#{rule.priority}", rule)
            return True
        if actual != rule:
            return False
        self.delta.lost(key)
        return True


def is_ours(rule: RuleInfo) -> bool:
    """Ours by protocol, or the Go agent's: a lookup of table 1107 that says nothing of who made it."""
    if rule.protocol == PROTOCOL:
        return True
    return rule.table == KILO_TABLE and rule.protocol in (PROTOCOL_UNSPEC, PROTOCOL_BOOT)
