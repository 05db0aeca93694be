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
from kilo.netctl.wireguard.watch import COUNTS_PERIOD, TIMES_PERIOD, PeerStates
from tests.unit.netctl.plans import key

IDLE = PeerState(frozenset({"10.2.1.0/24"}), ("198.51.100.1", 51820), 25)


def told(handshake: int = 0, received: int = 0, sent: int = 0) -> WireGuardPeerState:
    """The first peer, with endpoint and networks of IDLE, as the bus has it."""
    return WireGuardPeerState(
        key(1), "198.51.100.1", 51820, handshake, received, sent, allowed_ips=("10.2.1.0/24",)
    )


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher[WireGuardPeerState]]:
    with contextlib.closing(Loop()) as loop:
        yield Outlet(loop, str(tmp_path), "netctl").publish(WIREGUARD)


def test_counts_are_told_now_and_then_and_what_matters_at_once(
    publisher: Publisher[WireGuardPeerState],
) -> None:
    states = PeerStates(publisher)
    states.publish({key(1): IDLE, key(2): IDLE}, 0)
    assert publisher.state[key(1)] == told()
    busy = IDLE._replace(received_bytes=5, sent_bytes=6)
    states.publish({key(1): busy, key(2): IDLE}, 5)
    assert publisher.state[key(1)].received_bytes == 0
    met = busy._replace(last_handshake=1_700_000_000)
    states.publish({key(1): met, key(2): IDLE._replace(endpoint=("198.51.100.9", 9))}, 10)
    assert publisher.state == {
        key(1): told(1_700_000_000, 5, 6),
        key(2): WireGuardPeerState(key(2), "198.51.100.9", 9, allowed_ips=("10.2.1.0/24",)),
    }
    states.publish({key(1): met._replace(sent_bytes=99)}, COUNTS_PERIOD)
    assert publisher.state == {key(1): told(1_700_000_000, 5, 99)}


def test_handshakes_are_told_together_but_for_the_first(publisher: Publisher[WireGuardPeerState]) -> None:
    states = PeerStates(publisher)
    states.publish({key(1): IDLE}, 0)
    states.publish({key(1): IDLE._replace(last_handshake=1_700_000_000)}, 1)
    assert publisher.state[key(1)] == told(1_700_000_000)
    later = IDLE._replace(last_handshake=1_700_000_120, sent_bytes=7)
    states.publish({key(1): later}, TIMES_PERIOD - 0.1)
    assert publisher.state[key(1)] == told(1_700_000_000)
    states.publish({key(1): later}, TIMES_PERIOD)
    assert publisher.state[key(1)] == told(1_700_000_120, 0, 7)


def test_allowed_ips_are_told_in_order_and_at_once(publisher: Publisher[WireGuardPeerState]) -> None:
    """Whose a network is, a planner that has just started may have to ask."""
    states = PeerStates(publisher)
    states.publish({key(1): IDLE}, 0)
    networks = frozenset({"10.2.9.0/24", "10.2.1.0/24", "10.0.0.1/32"})
    states.publish({key(1): IDLE._replace(allowed_ips=networks)}, 5)
    assert publisher.state[key(1)].allowed_ips == ("10.0.0.1/32", "10.2.1.0/24", "10.2.9.0/24")


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
