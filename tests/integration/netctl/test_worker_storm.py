"""Faults at random, while everything is read again all the time: whatever comes between two steps."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from kilo.netctl import interface
from kilo.worker import Context
from tests.feeding import eventually, running
from tests.integration.netctl.hosts import ip
from tests.integration.netctl.worker_box import DESTINATIONS, PLAN_3, Box, Steady

pytestmark = pytest.mark.long

SECONDS = 15
PATIENCE = 8.0
"""What is tried again after a failure comes a second later, or two."""


class Untiring(Steady):
    """Makes an interface again at once however often it vanishes."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        interface._SPARE = 10**6


def damages(box: Box) -> dict[str, Callable[[], object]]:
    name = box.host.interface

    def shell(command: str) -> Callable[[], object]:
        return lambda: subprocess.run(command, shell=True, capture_output=True)

    def kill() -> None:
        for pid in box.host.programs():
            with contextlib.suppress(ProcessLookupError):  # it was ending
                os.kill(pid, signal.SIGKILL)

    return {
        "the interface is deleted": shell(f"ip link del {name}"),
        "it goes down": shell(f"ip link set {name} mtu 1300 down"),
        "it is renamed, and deleted": shell(f"ip link set {name} down name {name}x; ip link del {name}x"),
        "its program is killed": kill,
        "its address is deleted": shell(f"ip addr flush dev {name}"),
        "routes are deleted": shell("ip route flush proto 171"),
        "peers are removed": shell(
            f"for p in $(wg show {name} peers); do wg set {name} peer $p remove; done"
        ),
        "its port is changed": shell(f"wg set {name} listen-port 1234"),
        "its key is changed": shell(f"wg genkey | wg set {name} private-key /dev/stdin"),
    }


def test_whatever_is_damaged_while_all_is_read_again_is_mended(box: Box) -> None:
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    possible = damages(box)
    name = box.host.interface

    def settings() -> str:
        command = ["wg", "show", name, "dump"]
        return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]

    def whole() -> bool:
        shown = subprocess.run(["ip", "addr", "show", name], capture_output=True, text=True).stdout
        there = "10.4.0.1/16" in shown and "mtu 1420" in shown
        return there and box.routes() == DESTINATIONS and len(box.peers()) == 3 and settings() == before

    with running("netctl", Untiring, box.config(resync_period=0.15)):
        box.plan(PLAN_3)
        box.whole()
        before = settings()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            chosen = dice.sample(list(possible), dice.choice((1, 1, 2, 3)))
            for damage in chosen:
                possible[damage]()
                time.sleep(dice.choice((0, 0, dice.random() * 0.15)))
            eventually(whole, PATIENCE, f"seed {seed}: {', then '.join(chosen)}")
        eventually(lambda: not box.state().failing)
    assert "mtu 1420" in ip(f"link show {name}"), "it is left as it is, without --clean-up-interface"
