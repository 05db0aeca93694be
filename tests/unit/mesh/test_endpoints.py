from __future__ import annotations

import pytest

from kilo.mesh.endpoints import Overlay

OVERLAY = Overlay("10.4.0.0/16", ["10.2.0.0/24", "10.2.1.0/24", "fd00:2::/64"])


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.2.1.9", "10.2.1.9 lies in the pod CIDR 10.2.1.0/24"),
        ("::ffff:10.2.1.9", "::ffff:10.2.1.9 lies in the pod CIDR 10.2.1.0/24"),
        ("fd00:2::9", "fd00:2::9 lies in the pod CIDR fd00:2::/64"),
        ("10.4.0.7", "10.4.0.7 lies in the subnet 10.4.0.0/16 of WireGuard addresses"),
        ("10.5.0.1", "10.5.0.1 lies in 10.5.0.0/24, an allowed IP of the same peer"),
    ],
)
def test_overlay_with_the_address_holds_it(address: str, reason: str) -> None:
    assert OVERLAY.holds(address, ["10.5.0.0/24"]) == reason


@pytest.mark.parametrize("address", ["10.2.2.1", "203.0.113.7", "fd00:3::1", "10.5.1.1", "nonsense", ""])
def test_overlay_without_the_address_does_not_hold_it(address: str) -> None:
    assert OVERLAY.holds(address, ["10.5.0.0/24"]) == ""
