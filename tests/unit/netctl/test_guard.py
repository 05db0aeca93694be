"""Rule 7: which routes would carry the tunnel into itself."""

from __future__ import annotations

from kilo.model.plan import PlannedPeer, Route
from kilo.netctl.guard import Guard
from tests.unit.netctl.plans import key

WIDE = PlannedPeer(key(1), ("198.51.100.0/24", "10.2.1.0/24"), "198.51.100.7", 51820)
SAW = Route("198.51.100.0/24", "wireguard")


def test_a_route_over_the_endpoint_of_its_own_peer_is_withheld() -> None:
    guard = Guard()
    assert guard.update({WIDE.key: WIDE}, ())
    assert key(1) in guard.reason(SAW)
    assert guard.reason(Route("10.2.1.0/24", "wireguard")) == ""
    assert guard.reason(Route(SAW.dst, "private")) == "", "another device carries no tunnel"


def test_another_peers_endpoint_may_be_reached_through_a_tunnel() -> None:
    guard = Guard()
    other = PlannedPeer(key(2), ("10.2.2.0/24",), "198.51.100.9", 51820)
    guard.update({WIDE.key: WIDE, other.key: other}, ())
    moved = PlannedPeer(key(1), WIDE.allowed_ips, "203.0.113.7", 51820)
    assert guard.update({moved.key: moved}, ())
    assert guard.reason(SAW) == ""


def test_where_packets_go_in_fact_counts_as_well() -> None:
    guard = Guard()
    roaming = PlannedPeer(key(1), ("198.51.100.0/24",))
    assert not guard.update({roaming.key: roaming}, ())
    assert not guard.observe({roaming.key: "203.0.113.1"})
    assert guard.observe({roaming.key: "198.51.100.8"})
    assert guard.reason(SAW)
    assert not guard.observe({roaming.key: "198.51.100.9"})
    assert guard.observe({})
    assert guard.reason(SAW) == ""


def test_a_peer_that_goes_takes_its_reason_along() -> None:
    guard = Guard()
    guard.update({WIDE.key: WIDE}, ())
    assert guard.update({}, [WIDE.key])
    assert guard.reason(SAW) == ""
    assert not guard.update({}, [WIDE.key])
