"""Rules of others, any of them, in the same tables: never lost, rewritten or put in another order."""

from __future__ import annotations

import random

import pytest

from kilo.model.plan import PlanItem, Tunnel
from kilo.netctl.firewall.choice import Kind
from tests.integration.netctl.firewall.hosts import PROGRAMS, Agent, Namespace, entries, errors, policy

HOOKS = {
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
}
CONDITIONS = (
    "-p tcp -m tcp --dport {n}",
    "-p udp -m udp --sport {n}:{m}",
    "-p tcp -m multiport --dports 22,80,{n}",
    "-m conntrack --ctstate RELATED,ESTABLISHED",
    "-m mark --mark {h}/0xffff",
    "-m mark ! --mark {h}",
    '-m comment --comment "rule {n} of somebody, not Kilo: at all"',
    "-m limit --limit {b}/sec",
    "-m addrtype --dst-type LOCAL",
    "-m statistic --mode nth --every 3 --packet 1",
    "! -i lo",
    "-i veth{b}",
    "-p tcp -m tcp --tcp-flags SYN,RST SYN",
    "",
)
TARGETS = {
    "nat": ("-j RETURN", "-j ACCEPT", "-j MARK --set-xmark {h}/{h}", "-j OTHERS-{c}"),
    "filter": ("-j RETURN", "-j ACCEPT", "-j DROP", '-j LOG --log-prefix "x{n} "', "-j OTHERS-{c}"),
    "mangle": ("-j MARK --set-xmark {h}/0xffffffff", "-j TCPMSS --set-mss {n}", "-j RETURN", "-j OTHERS-{c}"),
}
MEMBERS = entries(
    masquerade_from="10.2.0.0/24 10.5.0.1/32 fd00:5::/64",
    masquerade_to="198.51.100.0/24",
    no_masquerade_to="10.2.0.0/24 10.2.1.0/24 fd00::/16",
    forward_accept_from="10.2.0.0/24",
    forward_accept_to="10.2.0.0/24 fd00:2::/64",
    ipip_accept_from="10.1.0.10/32",
)
ITEMS: list[PlanItem] = [policy(guard=True, forward=True), *MEMBERS]


class Others:
    """Others on the host, who write rules of any kind, anywhere, and take them away."""

    def __init__(self, host: Namespace, kind: Kind, chance: random.Random) -> None:
        self._host, self._programs, self._chance = host, PROGRAMS[kind], chance
        for program in self._programs:
            text = "".join(self._table(table) for table in HOOKS)
            host.run(f"{program}-restore", "-c", text=text)
        host.run("nft", "add table inet others { chain mine { type filter hook forward priority 5; }; }")
        host.run("nft", "add rule inet others mine ip daddr 10.2.1.0/24 counter accept")

    def _table(self, table: str) -> str:
        lines = [f"*{table}", *(f":{hook} {self._policy(table)} [0:0]" for hook in HOOKS[table])]
        lines += [f":OTHERS-{n} - [0:0]" for n in range(3)]
        chains = (*HOOKS[table], "OTHERS-0", "OTHERS-1", "OTHERS-2")
        for _ in range(self._chance.randrange(25)):
            chain, packets = self._chance.choice(chains), self._chance.randrange(1000)
            lines.append(f"[{packets}:{packets * 90}] -A {chain} {self._rule(table, chain)}")
        return "\n".join([*lines, "COMMIT", ""])

    def _policy(self, table: str) -> str:
        return self._chance.choice(("ACCEPT", "DROP")) if table == "filter" else "ACCEPT"

    def _rule(self, table: str, chain: str) -> str:
        """Whatever iptables accepts there."""
        pick = self._chance
        target = pick.choice(TARGETS[table])
        condition = pick.choice(CONDITIONS)
        if "TCPMSS" in target:
            condition = "-p tcp -m tcp --tcp-flags SYN,RST SYN"
        elif "-i " in condition and chain in ("OUTPUT", "POSTROUTING"):
            condition = ""
        after = [n for n in range(3) if f"OTHERS-{n}" > chain or not chain.startswith("OTHERS")]
        if "{c}" in target and not after:
            target = "-j RETURN"
        if chain.startswith("OTHERS") and "TCPMSS" in target:
            target = "-j RETURN"
        n = pick.randrange(1000, 30000)
        return f"{condition} {target}".format(
            n=n, m=n + 7, h=hex(pick.randrange(1, 0xFFFF)), b=n % 9 + 1, c=pick.choice(after or [0])
        )

    def act(self) -> None:
        """Add a rule somewhere in the chains in which ours are, too; or take one away again."""
        program = self._chance.choice(self._programs)
        table, chain = self._chance.choice(
            (("nat", "POSTROUTING"), ("filter", "FORWARD"), ("filter", "INPUT"), ("mangle", "FORWARD"))
        )
        listed = self._host.run(program, "-t", table, "-S", chain).splitlines()
        size = sum(line.startswith("-A") for line in listed)
        rule = f"-s {'192.0.2.1' if '6' not in program else '2001:db8::1'} -j RETURN"
        where = str(self._chance.randint(1, size + 1))
        self._host.run(program, "-t", table, "-I", chain, where, *rule.split())

    def rules(self, ours: tuple[str, ...] = ("KILO-", '"Kilo: ')) -> list[str]:
        """All that is not ``ours``, in its order, with counters."""
        lines = [line for p in self._programs for line in self._host.run(f"{p}-save", "-c").splitlines()]
        found = [line for line in lines if line[0] != "#" and not any(mark in line for mark in ours)]
        return [*found, *self._host.run("nft", "-a", "list", "table", "inet", "others").splitlines()]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sets", [True, False], ids=["sets", "plain"])
@pytest.mark.parametrize("kind", ["legacy", "nftables"])
def test_what_others_have_is_the_same_after_whatever_we_do(
    host: Namespace, kind: Kind, sets: bool, seed: int
) -> None:
    chance = random.Random(f"{kind} {sets} {seed}")
    others = Others(host, kind, chance)
    before = others.rules()
    agent = Agent(host, sets, kind=kind)
    assert not errors(agent.plan(*ITEMS))
    assert others.rules() == before
    there = set(range(len(MEMBERS)))
    for _ in range(6):
        if chance.random() < 0.6:
            others.act()
            before = others.rules()
        toggled = set(chance.sample(range(len(MEMBERS)), 2))
        there ^= toggled
        changed: list[PlanItem] = [MEMBERS[n] for n in toggled & there]
        changed.append(policy(guard=chance.random() < 0.5, forward=chance.random() < 0.5))
        changed += [Tunnel("ipip", "")] if chance.random() < 0.5 else []
        gone = [MEMBERS[n] for n in toggled - there]
        assert not errors(agent.plan(*changed, without=tuple(gone)))
        assert others.rules() == before
        assert not errors(agent.resync())
        assert others.rules() == before
    assert not errors(agent.clean_up())
    assert others.rules(ours=()) == before, "nothing of ours is left"
