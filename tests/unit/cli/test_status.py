"""What ``kg status`` makes of what it heard, for a person."""

from __future__ import annotations

import re
import time

from kilo.cli.heard import Kernel, Plan, Status, WireGuardPeer
from kilo.cli.status import CELL_MAX, MOST_PEERS, size, text_of

WELL = Kernel(repairs=0)
PLAN = Plan(
    generation=7, applied=7, location="location:x", leader=False, leads="n2", nodes=3, segments=2, peers=1
)


def peer(name: str, handshake: int, received: int = 0) -> WireGuardPeer:
    return WireGuardPeer(name, f"key of {name}", "203.0.113.1:51820", handshake, received, 2048)


def text(kernel: Kernel = WELL, wireguard: list[WireGuardPeer] | None = None, plan: Plan = PLAN) -> str:
    found = Status("n1", True, True, [], "", plan=plan, kernel=kernel, wireguard=wireguard or [])
    return text_of(found)


def test_who_leads_is_named() -> None:
    assert "location:x, led by n2;" in text()
    assert "location:x, leader;" in text(plan=Plan(7, 7, "location:x", leader=True, leads="n1"))


def test_internal_ip_that_is_missing_has_its_reason() -> None:
    assert "internal IP" not in text()
    plan = Plan(7, 7, "node:n1", internal_ip="none: 10.233.0.1 does not count (kube-ipvs0 is down)")
    assert "\ninternal IP: none: 10.233.0.1 does not count (kube-ipvs0 is down)\n" in text(plan=plan)


def test_peers_have_the_age_of_their_last_handshake() -> None:
    lines = text(wireguard=[peer("", 0), peer("b", int(time.time()) - 60, 3 << 20)]).splitlines()
    assert "2 WireGuard peers: 1 with a handshake in the last 3 minutes, 1 that never had one" in "\n".join(
        lines
    )
    assert lines[-2].split() == ["key", "of", "203.0.113.1:51820", "never", "0", "B", "2.0", "KiB"]
    assert lines[-1].split()[:2] == ["b", "203.0.113.1:51820"]
    assert re.search(r" 6\ds ago ", lines[-1])
    assert "3.0 MiB" in lines[-1]


def test_of_many_those_that_were_silent_for_longest_are_named() -> None:
    peers = [peer(f"p{n}", 1_000_000 + n) for n in range(MOST_PEERS + 5)]
    lines = text(wireguard=peers).splitlines()
    assert lines[-1] == "and 5 with later handshakes; kg status -o json names all"
    assert lines[-2].startswith(f"p{MOST_PEERS - 1} ")


def test_repairs_and_drift() -> None:
    assert "kernel: as planned; 4 repairs since netctl started\n" in text(Kernel(repairs=4))
    drift = text(Kernel(repairs=4, cni_repairs=1, drift_since=time.time() - 90, fights=2))
    assert (
        "kernel: not as planned for 90s; 4 repairs since netctl started, 1 of the CNI configuration; 2 "
        in drift
    )
    assert "kernel: unknown, as netctl is not heard" in text(Kernel())


def test_sizes() -> None:
    assert [size(n) for n in (0, 1023, 1024, 5 << 30, 3 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 GiB",
        "3072.0 TiB",
    ]


def test_control_characters_are_escapes_and_columns_stay_narrow() -> None:
    shown = text(wireguard=[peer("a\x1b[2J\0\u202eb", 1), peer("c" * 10_000, 1)])
    assert "a\\x1b[2J\\x00\\u202eb" in shown
    assert shown.replace("\n", "").isprintable()
    assert max(map(len, shown.splitlines())) < 2 * CELL_MAX
    odd = Plan(7, 7, "location:x\ny\x9b", leader=False, leads="n2\x7f")
    assert "; location:x\\ny\\x9b, led by n2\\x7f; " in text(plan=odd)
