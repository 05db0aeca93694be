"""What every WireGuard device must do, whoever serves it: wireguard-go, or the kernel (see tests/vm).

A test class that inherits this gives two fixtures: ``interface``, the name of a fresh device, and
``device``, its adapter.
"""

from __future__ import annotations

import subprocess

from kilo.model.keys import ZERO, PresharedKey
from kilo.netctl.key import PrivateKey
from kilo.netctl.wireguard.device import Device, DeviceState, PeerChange, PeerState
from tests.unit.netctl.plans import key

KEY = PrivateKey(bytes(range(8, 40)))
FULL = PeerChange(
    key(1),
    allowed_ips=("10.2.1.0/24", "fd00:1::/64"),
    endpoint=("198.51.100.1", 51820),
    keepalive=25,
    preshared_key=PresharedKey(key(9)),
)
FULL_STATE = PeerState(frozenset(FULL.allowed_ips), ("198.51.100.1", 51820), 25, PresharedKey(key(9)))


def wg(*arguments: str) -> str:
    """What ``wg`` prints. Raises CalledProcessError."""
    return subprocess.run(["wg", *arguments], check=True, capture_output=True, text=True).stdout


class DeviceContract:
    """See the module's text."""

    def test_a_fresh_device_is_empty_and_takes_key_and_port(self, interface: str, device: Device) -> None:
        fresh = device.read()
        assert (fresh.private_key, fresh.peers) == (None, {})
        device.configure(KEY, 51820)
        assert device.read() == DeviceState(KEY, 51820, {})
        assert wg("show", interface, "public-key").strip() == KEY.public()
        assert wg("show", interface, "listen-port").strip() == "51820"
        device.configure(None, 51821)
        assert device.read() == DeviceState(KEY, 51821, {})

    def test_peers_are_as_they_were_told(self, device: Device) -> None:
        six = PeerChange(key(2), endpoint=("2001:db8::1", 1))
        assert device.change([FULL, six, PeerChange(key(3), allowed_ips=("10.2.3.0/24",))]) == ["", "", ""]
        assert device.read().peers == {
            key(1): FULL_STATE,
            key(2): PeerState(frozenset(), ("2001:db8::1", 1)),
            key(3): PeerState(frozenset({"10.2.3.0/24"})),
        }
        moved = PeerChange(key(3), allowed_ips=("10.2.1.0/24",), endpoint=("198.51.100.3", 3))
        less = PeerChange(key(1), replace=True, keepalive=0, preshared_key=PresharedKey(ZERO))
        assert device.change([moved, less, PeerChange(key(2), remove=True)]) == ["", "", ""]
        assert device.read().peers == {
            key(1): PeerState(frozenset(), ("198.51.100.1", 51820)),
            key(3): PeerState(frozenset({"10.2.3.0/24", "10.2.1.0/24"}), ("198.51.100.3", 3)),
        }

    def test_a_peer_that_has_not_changed_is_the_object_that_was_read_before(self, device: Device) -> None:
        others = [PeerChange(key(n), allowed_ips=(f"10.2.{n}.0/24",)) for n in (2, 3)]
        assert device.change([FULL, *others]) == ["", "", ""]
        before = device.read().peers
        assert device.change([PeerChange(key(2), keepalive=7), PeerChange(key(3), remove=True)]) == ["", ""]
        now = device.read().peers
        assert now[key(1)] is before[key(1)]
        assert now == {
            key(1): FULL_STATE,
            key(2): PeerState(frozenset({"10.2.2.0/24"}), keepalive=7),
        }
        assert device.change(others) == ["", ""]
        assert device.read().peers == {**now, key(3): before[key(3)]}

    def test_thousands_of_peers_and_many_addresses_on_one(self, device: Device) -> None:
        many = tuple(f"10.{64 + n // 250}.{n % 250}.0/24" for n in range(5000))
        changes = [
            PeerChange(key(n), allowed_ips=(f"10.32.{n // 250}.{n % 250}/32",)) for n in range(2, 2002)
        ]
        assert device.change([PeerChange(key(1), allowed_ips=many), *changes]) == [""] * 2001
        state = device.read()
        assert state.peers[key(1)].allowed_ips == frozenset(many)
        assert len(state.peers) == 2001
        kept = many[::2]
        assert device.change([PeerChange(key(1), replace=True, allowed_ips=kept)]) == [""]
        state = device.read()
        assert state.peers[key(1)].allowed_ips == frozenset(kept)
        assert state.peers[key(2)].allowed_ips == {"10.32.0.2/32"}

    def test_hundreds_of_addresses_move_from_one_peer_to_another(self, device: Device) -> None:
        """Some, then all, and at last with the peer that goes."""
        pairs = [(f"10.64.{n}.0/24", f"fd00:64:{n:x}::/48") for n in range(1, 251)]
        networks = tuple(network for pair in pairs for network in pair)
        own = "10.2.2.0/24"
        assert device.change(
            [PeerChange(key(1), allowed_ips=networks), PeerChange(key(2), allowed_ips=(own,))]
        ) == ["", ""]

        def held() -> dict[str, frozenset[str]]:
            return {name: peer.allowed_ips for name, peer in device.read().peers.items()}

        some = networks[::3]
        assert device.change([PeerChange(key(2), allowed_ips=some)]) == [""]
        assert held() == {key(1): set(networks) - set(some), key(2): {own, *some}}
        assert device.change([PeerChange(key(2), allowed_ips=networks)]) == [""]
        assert held() == {key(1): frozenset(), key(2): {own, *networks}}
        moved = PeerChange(key(3), allowed_ips=networks)
        assert device.change([moved, PeerChange(key(2), remove=True)]) == ["", ""]
        assert held() == {key(1): frozenset(), key(3): frozenset(networks)}

    def test_one_thing_changes_and_the_rest_stays(self, device: Device) -> None:
        device.change([FULL])
        state = FULL_STATE
        for change, expected in (
            (PeerChange(key(1), endpoint=("2001:db8::7", 7)), {"endpoint": ("2001:db8::7", 7)}),
            (PeerChange(key(1), keepalive=0), {"keepalive": 0}),
            (PeerChange(key(1), keepalive=65535), {"keepalive": 65535}),
            (
                PeerChange(key(1), preshared_key=PresharedKey(key(8))),
                {"preshared_key": PresharedKey(key(8))},
            ),
            (PeerChange(key(1), preshared_key=PresharedKey(ZERO)), {"preshared_key": None}),
            (PeerChange(key(1), allowed_ips=("::/0",)), {"allowed_ips": FULL_STATE.allowed_ips | {"::/0"}}),
            (PeerChange(key(1), endpoint=("198.51.100.2", 65535)), {"endpoint": ("198.51.100.2", 65535)}),
        ):
            state = state._replace(**expected)
            assert device.change([change]) == [""]
            assert device.read().peers == {key(1): state}

    def test_a_peer_that_is_refused_costs_itself_alone(self, device: Device) -> None:
        bad = PeerChange(key(2), allowed_ips=("10.2.2.0/99",))
        errors = device.change([PeerChange(key(1)), bad, PeerChange(key(3))])
        assert [bool(error) for error in errors] == [False, True, False]
        assert {key(1), key(3)} <= device.read().peers.keys()
