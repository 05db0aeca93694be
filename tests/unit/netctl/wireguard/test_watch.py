"""How often the bus hears of peers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.bus import WIREGUARD, Loop, Publisher
from kilo.bus.publisher import Outlet
from kilo.model.host import WireGuardPeerState
from kilo.netctl.wireguard.device import PeerState
from kilo.netctl.wireguard.watch import COUNTS_PERIOD, PeerStates
from tests.unit.netctl.plans import key

IDLE = PeerState(frozenset({"10.2.1.0/24"}), ("198.51.100.1", 51820), 25)


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher[WireGuardPeerState]]:
    with contextlib.closing(Loop()) as loop:
        yield Outlet(loop, str(tmp_path), "netctl").publish(WIREGUARD)


def test_counts_are_told_now_and_then_and_what_matters_at_once(
    publisher: Publisher[WireGuardPeerState],
) -> None:
    states = PeerStates(publisher)
    states.publish({key(1): IDLE, key(2): IDLE}, 0)
    assert publisher.state[key(1)] == WireGuardPeerState(key(1), "198.51.100.1", 51820)
    busy = IDLE._replace(received_bytes=5, sent_bytes=6)
    states.publish({key(1): busy, key(2): IDLE}, 5)
    assert publisher.state[key(1)].received_bytes == 0
    met = busy._replace(last_handshake=1_700_000_000)
    states.publish({key(1): met, key(2): IDLE._replace(endpoint=("198.51.100.9", 9))}, 10)
    assert publisher.state == {
        key(1): WireGuardPeerState(key(1), "198.51.100.1", 51820, 1_700_000_000, 5, 6),
        key(2): WireGuardPeerState(key(2), "198.51.100.9", 9),
    }
    states.publish({key(1): met._replace(sent_bytes=99)}, COUNTS_PERIOD)
    assert publisher.state == {
        key(1): WireGuardPeerState(key(1), "198.51.100.1", 51820, 1_700_000_000, 5, 99)
    }


def test_an_empty_device_is_told_too_and_no_change_is_not(publisher: Publisher[WireGuardPeerState]) -> None:
    states = PeerStates(publisher)
    sent: list[int] = []
    flush = publisher.flush

    def counted() -> bool:
        if done := flush():
            sent.append(1)
        return done

    publisher.flush = counted  # type: ignore[method-assign]
    states.publish({}, 0)
    assert len(sent) == 1
    states.publish({key(1): IDLE}, 5)
    for second in range(6, 100):
        states.publish({key(1): IDLE}, second)
    assert len(sent) == 2
