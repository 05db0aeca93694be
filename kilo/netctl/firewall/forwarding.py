"""Whether a host's FORWARD chain accepts new flows of this node's pods. Pure.

Each rule is reduced to the part of the pods' new flows that it matches (``Fits``), outward (a pod sends
first) and inward. A chain is reported only where it surely drops: a rule with a condition that is not
understood counts as one that accepts. Called by kilo.netctl.firewall.forwarding_look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kilo.model.net import bounds

Fit = Literal["all", "some", "none"]
"""Of the pods' new flows a rule matches all; perhaps enough for them to work; or only special ones."""
Side = Literal["src", "dst"]
Device = Literal["in", "out"]
_WEAKER: dict[Fit, Fit] = {"all": "some", "some": "some", "none": "none"}
_DEEPEST = 16
_GO_ON = "go on"


class Pods(NamedTuple):
    """``cidr``: their addresses. ``devices``: interfaces by which packets reach them, by name; ``wireguard``:
    the mesh's own."""

    cidr: str
    devices: frozenset[str]
    wireguard: frozenset[str]

    @property
    def version(self) -> int:
        return bounds(self.cidr)[0]


class Rule(NamedTuple):
    """``target``: accept, drop, return, "" to go on, or the chain that it jumps to after an ``@``,
    or goes to after ``@@``."""

    outward: Fit
    inward: Fit
    target: str


class Fits:
    """The part of the pods' new flows that meets all conditions added so far."""

    def __init__(self, pods: Pods) -> None:
        self.outward: Fit = "all"
        self.inward: Fit = "all"
        self._pods = pods
        self._version, self._first, self._last = bounds(pods.cidr)

    def narrow(self) -> None:
        """A condition that only special flows meet, such as a port or an established state."""
        self.outward = self.inward = "none"

    def unknown(self) -> None:
        """A condition that pods may meet or not."""
        self.outward, self.inward = _WEAKER[self.outward], _WEAKER[self.inward]

    def address(self, side: Side, first: int, last: int, inverted: bool) -> None:
        """The packet's source or destination is, or is not, one of ``first`` to ``last``."""
        if first == 0 and last.bit_length() == (32 if self._version == 4 else 128) and not last & last + 1:
            if inverted:
                self.narrow()
            return
        holds = first <= self._first and self._last <= last
        wider = holds and (first, last) != (self._first, self._last)
        own: Fit = "all" if holds else "none"
        # Pods reach pods of other nodes where both ends are in a network wider than the pod CIDR.
        far: Fit = "some" if wider else "none"
        if inverted:
            own = "all" if last < self._first or self._last < first else "none"
            far = "none" if wider else "some"
        self._meet(*((own, far) if side == "src" else (far, own)))

    def device(self, way: Device, name: str, inverted: bool, prefix: bool = False) -> None:
        """The packet came, or goes, by the interface ``name``, or one whose name begins so."""
        if inverted or prefix:
            self.unknown()
            return
        near: Fit = "all" if name in self._pods.devices else "none"
        far: Fit = "some" if name in self._pods.wireguard else "none"
        self._meet(*((near, far) if way == "in" else (far, near)))

    def rule(self, target: str) -> Rule:
        return Rule(self.outward, self.inward, target)

    def _meet(self, outward: Fit, inward: Fit) -> None:
        order: Sequence[Fit] = ("none", "some", "all")
        self.outward = min(self.outward, outward, key=order.index)
        self.inward = min(self.inward, inward, key=order.index)


RulesOf = Callable[[str], Sequence[Rule]]


@dataclass(frozen=True)
class Blocked:
    """A base chain that drops pods' new flows. ``where``: the chain, for a person; ``by_policy``, or by a
    rule; ``outward``, ``inward``: which flows. ``insert``: the command that inserts a rule, but for its
    condition; ``iptables``: it is FORWARD of legacy iptables, or of iptables-nft, or neither ("")."""

    where: str
    by_policy: bool
    outward: bool
    inward: bool
    insert: str
    iptables: Literal["legacy", "nftables", ""] = ""


def judge(rules_of: RulesOf, chain: str, drops_rest: bool) -> tuple[bool, bool, bool]:
    """Whether a base chain drops what pods send, what is sent to them, and whether its policy does it."""
    verdicts = [_verdict(rules_of, chain, outward, {}, 0) for outward in (True, False)]
    by_policy = drops_rest and _GO_ON in verdicts
    outward, inward = (v == "drop" or (drops_rest and v == _GO_ON) for v in verdicts)
    return outward, inward, by_policy


def _verdict(rules_of: RulesOf, chain: str, outward: bool, known: dict[str, str], depth: int) -> str:
    """What a chain does to pods' new flows: accept, drop, or _GO_ON with the chain that jumped to it."""
    if chain in known or depth > _DEEPEST:
        return known.get(chain, "accept")
    known[chain] = _GO_ON
    may_leave = False
    for rule in rules_of(chain):
        fit = rule.outward if outward else rule.inward
        if fit == "none" or not rule.target:
            continue
        verdict = rule.target
        if verdict.startswith("@"):
            verdict = _verdict(rules_of, verdict.lstrip("@"), outward, known, depth + 1)
            if verdict == _GO_ON and rule.target.startswith("@@"):
                verdict = "return"  # after a goto the kernel does not come back to this chain
        if verdict == "accept":
            known[chain] = verdict
            break
        if verdict == "drop" and fit == "all":
            # What may have left the chain before is not surely dropped.
            known[chain] = _GO_ON if may_leave else verdict
            break
        if verdict == "return":
            if fit == "all":
                break
            may_leave = True
    return known[chain]


def describe(blocked: Sequence[Blocked], cidr: str, flag_for: str) -> str:
    """What to do about chains that drop pods, for a person; "" for none.

    ``flag_for``: the kind of iptables in whose FORWARD --iptables-forward-rules would add rules, "" if that
    is given already.
    """
    return "; ".join(_described(chain, cidr, flag_for) for chain in blocked)


def _described(chain: Blocked, cidr: str, flag_for: str) -> str:
    out, back = f"what pods send (from {cidr})", f"what is sent to pods (to {cidr})"
    what = " and ".join([*([out] * chain.outward), *([back] * chain.inward)])
    why = "its policy is drop, and no rule accepts it" if chain.by_policy else "a rule drops it"
    source, destination = ("-s {}", "-d {}") if chain.iptables else ("{family} saddr {}", "{family} daddr {}")
    family = "ip6" if ":" in cidr else "ip"
    verdict = " -j ACCEPT" if chain.iptables else " accept"
    commands = [
        chain.insert + " " + condition.format(cidr, family=family) + verdict
        for condition, needed in ((source, chain.outward), (destination, chain.inward))
        if needed
    ]
    flag = "give --iptables-forward-rules, or " if chain.iptables and chain.iptables == flag_for else ""
    return f"{chain.where} drops {what}: {why}; {flag}accept it there: {', '.join(commands)}"
