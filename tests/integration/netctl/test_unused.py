"""tunl0 that is not needed any more. This kernel may have no IPIP, so a veth plays the device: what is
looked at and done (up, addresses, routes, down) is the same for every kind. What passes through the
real one is seen in the virtual machine."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator

import pytest

from kilo.config import Config
from kilo.log import Logger
from kilo.model.plan import Firewall as Policy
from kilo.model.plan import PlanItem, SetEntry, Tunnel
from kilo.netctl.addresses import Addresses
from kilo.netctl.firewall import Firewall
from kilo.netctl.host import Host as HostView
from kilo.netctl.host import Roles
from kilo.netctl.netlink.messages import RTM_NEWLINK
from kilo.netctl.reconcile import Outcome
from kilo.netctl.routes import Routes
from kilo.netctl.tunnel import TunnelDevice
from kilo.netctl.unused import UnusedTunnel
from tests.integration.netctl.faults import Refusing
from tests.integration.netctl.hosts import Host, ip, lines
from tests.unit.netctl.plans import interface

TUNNEL = Tunnel("ipip", "10.2.0.1/32")
GUARDED = Policy(ipip_guard=True, forward=False)
OPEN = Policy(ipip_guard=False, forward=False)
MEMBER = SetEntry("ipip_accept_from", "10.1.0.11/32")
ALWAYS: list[PlanItem] = [interface(address=""), TUNNEL, GUARDED, MEMBER]
NEVER: list[PlanItem] = [interface(address=""), OPEN]


class Box:
    """A node's reconcilers, driven as the worker does it; ``netlink`` sets the device down."""

    def __init__(self, firewall: str) -> None:
        self.netlink = Refusing()
        self.view, self.roles = HostView(self.netlink), Roles()
        self.firewall = Firewall(Config(firewall=firewall), Logger("netctl", "none"))
        self.unused = UnusedTunnel(self.netlink, self.view, self.roles, kind="veth")
        self.addresses = Addresses(self.netlink, self.view, self.roles)
        self.tunnel = TunnelDevice(self.netlink, self.view, self.roles, "")
        self.read = False

    def step(self, *items: PlanItem, remove: tuple[str, ...] = ()) -> list[Outcome]:
        """A pass, with the plan's changes before it; what was not done, or could not be."""
        self.view.load()
        for part in (self.firewall, self.unused, self.addresses):
            part.update({item.key: item for item in items}, remove)
        self.roles.assign("tunnel", self.view.named("tunl0"))
        if not self.read:
            self.firewall.load()
            self.read = True
        self.addresses.resolve()
        self.addresses.load()
        outcomes = self.addresses.apply()
        self.firewall.keep_guard(self.unused.is_open())
        outcomes += self.firewall.apply() + self.unused.apply()
        outcomes += self.unused.prune()
        self.firewall.keep_guard(self.unused.is_open())
        outcomes += self.firewall.prune()
        outcomes += self.addresses.prune()
        return [outcome for outcome in outcomes if outcome.error]

    def close(self) -> None:
        self.firewall.close()
        self.netlink.close()


@pytest.fixture(params=["legacy", "nftables"])
def box(host: Host, request: pytest.FixtureRequest) -> Iterator[Box]:
    host.wire()
    ip("link add tunl0 type veth peer name tunl0-far")
    with contextlib.closing(Box(request.param)) as made:
        yield made


@pytest.fixture
def plain(host: Host) -> Iterator[Box]:
    """With one firewall, where it does not matter which."""
    host.wire()
    ip("link add tunl0 type veth peer name tunl0-far")
    with contextlib.closing(Box("nftables")) as made:
        yield made


def up() -> bool:
    return ",UP" in lines("-o link show tunl0")[0].split(">")[0]


def guarded(box: Box) -> bool:
    """Whether the kernel has the rules that drop IPIP from strangers."""
    if box.firewall.told.startswith("legacy"):
        return (
            "KILO-IPIP"
            in subprocess.run(["iptables-legacy", "-S"], capture_output=True, text=True, check=True).stdout
        )
    shown = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    return "ipip" in shown


def in_use(box: Box) -> None:
    """As with --encapsulate=always."""
    ip("link set tunl0 up")
    box.step(*ALWAYS)
    assert up() and guarded(box)


def test_it_goes_down_and_then_its_guard_goes(box: Box) -> None:
    in_use(box)
    assert box.step(*NEVER, remove=(TUNNEL.key, MEMBER.key)) == []
    assert not up() and not guarded(box)
    assert not [line for line in lines("addr show tunl0") if line.startswith("inet ")]


def test_the_guard_stays_while_it_cannot_be_set_down(box: Box) -> None:
    in_use(box)
    box.netlink.refuse = lambda request: errno.EBUSY if request.kind == RTM_NEWLINK else 0
    (failed,) = box.step(*NEVER, remove=(TUNNEL.key, MEMBER.key))
    assert failed.key == "tunnel/down" and "tunl0: " in failed.error and "EBUSY" in failed.error
    assert up() and guarded(box)
    box.netlink.refuse = lambda request: 0
    box.unused._clock = lambda: 1e9
    assert box.step() == []
    assert not up() and not guarded(box)


def test_what_an_earlier_run_left_up_is_set_down_before_its_guard_goes(box: Box) -> None:
    """A restart with another --encapsulate: the first plan does not have the tunnel."""
    in_use(box)
    box.firewall.close()
    later = Box(box.firewall.told.split(",")[0].split(":")[0])
    with contextlib.closing(later):
        assert later.step(*NEVER) == []
        assert not up() and not guarded(later)


def test_before_a_plan_it_is_left_alone(plain: Box) -> None:
    ip("link set tunl0 up")
    plain.view.load()
    assert not plain.unused.is_open() and plain.unused.prune() == []
    assert up() and plain.netlink.sent == 0


@pytest.mark.parametrize(
    "use",
    [
        "addr add 10.9.0.1/32 dev tunl0",
        "route add 10.99.0.0/24 dev tunl0",
        "route add 10.99.0.0/24 dev tunl0 table 77 proto bird",
    ],
)
def test_what_somebody_else_uses_is_left_alone_and_unguarded(plain: Box, use: str) -> None:
    ip("link set tunl0 up")
    ip(use)
    assert plain.step(*NEVER) == []
    assert up() and not guarded(plain)


def test_another_kind_of_device_is_left_alone(host: Host) -> None:
    host.wire()
    ip("link add tunl0 type bridge")
    ip("link set tunl0 up")
    with contextlib.closing(Box("nftables")) as box:
        assert box.step(*NEVER) == [] and box.netlink.sent == 0
    assert up()


@pytest.mark.parametrize("protocol", ["171", "static"])
def test_an_address_that_says_nothing_is_ours_where_routes_of_ours_are(plain: Box, protocol: str) -> None:
    """As the Go agent leaves it, and ourselves before Linux 5.18."""
    ip("link set tunl0 up")
    ip("addr add 10.2.0.1/32 dev tunl0")
    ip(f"route add 10.2.1.0/24 via 10.1.0.11 dev tunl0 onlink proto {protocol}")
    assert plain.step(*NEVER) == []
    assert not up()


def test_who_sets_it_up_afterwards_may_have_it(plain: Box) -> None:
    in_use(plain)
    plain.step(*NEVER, remove=(TUNNEL.key, MEMBER.key))
    ip("link set tunl0 up")
    assert plain.step() == [] and up()
    plain.step(*ALWAYS)
    plain.step(*NEVER, remove=(TUNNEL.key, MEMBER.key))
    assert not up(), "it was ours again"


def test_with_flannels_device_in_the_plan_ours_goes_down(plain: Box) -> None:
    in_use(plain)
    plain.step(*NEVER, Tunnel("flannel", ""), remove=(MEMBER.key,))
    assert not up()


def test_the_clean_up_sets_it_down(plain: Box) -> None:
    in_use(plain)
    plain.unused.look()
    assert [outcome.error for outcome in plain.unused.clean_up()] == [""]
    assert not up()
    assert plain.unused.clean_up() == []


def test_the_clean_up_leaves_what_somebody_else_uses(plain: Box) -> None:
    ip("link set tunl0 up")
    ip("addr add 10.9.0.1/32 dev tunl0")
    plain.view.load()
    plain.unused.look()
    assert plain.unused.clean_up() == [] and up()


def test_a_clean_up_after_a_run_that_was_killed_knows_it_by_its_routes(plain: Box) -> None:
    """Routes go first; what they say of the device is kept in mind."""
    ip("link set tunl0 up")
    ip("addr add 10.2.0.1/32 dev tunl0")
    ip("route add 10.2.1.0/24 via 10.1.0.11 dev tunl0 onlink proto 171")
    plain.view.load()
    plain.roles.assign("tunnel", plain.view.named("tunl0"))
    plain.unused.look()
    Routes(plain.netlink, plain.roles).clean_up()
    plain.unused.clean_up()
    assert not up()
