"""Addresses of our devices, in a real kernel."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import pytest

from kilo.model.plan import PlanItem, Tunnel
from kilo.netctl.addresses import Addresses
from kilo.netctl.host import Host as HostView
from kilo.netctl.host import Roles
from kilo.netctl.netlink.messages import GROUPS_ROUTE, RTM_NEWADDR, parse_route
from kilo.netctl.netlink.socket import Netlink
from kilo.netctl.reconcile import Outcome
from tests.integration.netctl.faults import Refusing
from tests.integration.netctl.hosts import Host, ip, kernel_events, lines
from tests.unit.netctl.plans import interface


class Box:
    """The reconciler, on a host with eth0, and with veths that play kilo0 and tunl0."""

    def __init__(self, host: Host, netlink: Netlink) -> None:
        host.wire()
        for name in ("kilo0", "tunl0"):
            ip(f"link add {name} type veth peer name {name}-far")
            ip(f"link set {name} up")
            ip(f"link set {name}-far up")
        self.netlink = netlink
        self.view, self.roles = HostView(netlink), Roles()
        self.addresses = Addresses(netlink, self.view, self.roles)
        self.view.load()
        self.roles.assign("wireguard", self.view.named("kilo0"))
        self.roles.assign("tunnel", self.view.named("tunl0"))

    def run(self, *items: PlanItem, remove: tuple[str, ...] = ()) -> list[Outcome]:
        self.addresses.update({item.key: item for item in items}, remove)
        outcomes = []
        for step in (self.addresses.apply, self.addresses.prune):
            self.view.load()
            self.addresses.resolve()
            self.addresses.load()
            outcomes += step()
        return outcomes

    def have(self, name: str = "kilo0") -> list[str]:
        return [line.split()[1] for line in lines(f"addr show {name}") if line.startswith("inet ")]


@pytest.fixture
def box(host: Host) -> Iterator[Box]:
    with contextlib.closing(Netlink()) as netlink:
        yield Box(host, netlink)


def test_an_address_comes_and_a_node_that_does_not_lead_has_none(box: Box) -> None:
    assert box.run(interface()) == [Outcome("address/kilo0/10.4.0.1/16")]
    assert box.have() == ["10.4.0.1/16"]
    assert box.run(interface()) == []
    box.run(interface(address=""))
    assert box.have() == []
    box.run(interface())
    box.run(remove=("interface",))
    assert box.have() == []


def test_an_address_takes_another_s_place_and_no_route_is_lost(box: Box) -> None:
    """The kernel deletes the later addresses of a subnet with the first one, and with a link's last
    address every route over the link; and it refuses routes by way of an address that is its own."""
    box.run(interface(address="10.4.0.2/16"))
    ip("route add 10.9.0.0/24 dev kilo0 src 10.1.0.10")
    ip("route add 10.10.0.0/24 via 10.4.0.1 dev kilo0 onlink proto 171")
    with kernel_events(*GROUPS_ROUTE) as events:
        box.addresses.update({"interface": interface(address="10.4.0.7/16")}, ())
        box.addresses.resolve()
        assert box.addresses.apply() == [Outcome("address/kilo0/10.4.0.7/16")]
    assert box.have() == ["10.4.0.7/16"]
    touched = {route.dst for event in events if (route := parse_route(event))}
    assert "10.4.0.0/16" in touched and not touched & {"10.9.0.0/24", "10.10.0.0/24"}
    ip("route add 10.11.0.0/24 via 10.4.0.2 dev kilo0 onlink")
    routes = lines("route")
    assert "10.4.0.0/16 dev kilo0 proto kernel scope link src 10.4.0.7" in routes
    assert "10.9.0.0/24 dev kilo0 scope link src 10.1.0.10" in routes
    assert "10.10.0.0/24 via 10.4.0.1 dev kilo0 proto 171 onlink" in routes
    assert box.run() == []
    assert box.have() == ["10.4.0.7/16"]


def test_an_address_that_somebody_added_goes_and_takes_nothing_with_it(box: Box) -> None:
    box.run(interface())
    ip("addr add 10.4.0.9/16 dev kilo0")
    ip("route add 10.9.0.0/24 dev kilo0 src 10.1.0.10")
    box.run()
    assert box.have() == ["10.4.0.1/16"]
    assert "10.9.0.0/24 dev kilo0 scope link src 10.1.0.10" in lines("route")


def test_addresses_of_another_subnet_or_by_hand_go(box: Box) -> None:
    ip("addr add 10.5.0.1/16 dev kilo0")
    ip("addr add fd05::1/64 dev kilo0 nodad")
    ip("addr add fe80::5/64 dev kilo0 nodad")
    box.run(interface(), interface())
    assert box.have() == ["10.4.0.1/16"]
    six = lines("-6 addr show kilo0")
    assert not any("fd05" in line for line in six) and any("fe80" in line for line in six)


def test_an_address_that_the_go_agent_set_is_left_in_place(box: Box) -> None:
    ip("addr add 10.4.0.1/16 dev kilo0")
    before = box.netlink.sent
    assert box.run(interface()) == []
    assert box.netlink.sent == before


def test_another_interfaces_address_is_not_taken(box: Box) -> None:
    ip("addr add 10.4.0.1/32 dev eth0")
    (outcome, *_) = box.run(interface())
    assert "10.4.0.1 is an address of eth0" in outcome.error
    assert box.have() == []
    ip("addr del 10.4.0.1/32 dev eth0")
    box.run()
    assert box.have() == ["10.4.0.1/16"]


def test_the_tunnels_address_is_ours_only_while_planned_or_marked(box: Box) -> None:
    ip("addr add 10.7.0.1/32 dev tunl0")
    box.run(interface())
    assert box.have("tunl0") == ["10.7.0.1/32"], "a tunnel that the plan does not use may be another's"
    box.run(Tunnel("ipip", "10.2.0.1/32"))
    assert box.have("tunl0") == ["10.2.0.1/32"]
    box.run(remove=("tunnel",))
    assert box.have("tunl0") == []


def test_the_tunnel_shares_its_address_with_the_bridge_of_the_pods_alone(box: Box) -> None:
    tunnel = Tunnel("ipip", "10.2.0.1/32")
    ip("link add other type bridge")
    ip("addr add 10.2.0.1/24 dev other")
    (waiting,) = box.run(tunnel)
    assert "10.2.0.1 is an address of other" in waiting.error and box.have("tunl0") == []
    ip("link set other name kube-bridge")
    box.run(tunnel)
    assert box.have("tunl0") == ["10.2.0.1/32"] and box.have("kube-bridge") == ["10.2.0.1/24"]
    assert box.run(tunnel) == []


def test_it_waits_for_its_device(box: Box) -> None:
    box.roles.assign("wireguard", None)
    (outcome, *_) = box.run(interface())
    assert outcome.waits and "no wireguard device yet" in outcome.error


def test_what_is_there_stays_while_nothing_has_the_role(box: Box) -> None:
    """An interface that has not been found yet has its address, and with it would lose every route."""
    box.run(interface())
    box.roles.assign("wireguard", None)
    box.addresses.resolve()
    assert [outcome.waits for outcome in box.run(interface()) if outcome.error] == [True]
    assert box.have() == ["10.4.0.1/16"]


def test_clean_up(box: Box) -> None:
    box.run(interface(), Tunnel("ipip", "10.2.0.1/32"))
    box.view.load()
    box.addresses.clean_up()
    assert box.have() == box.have("tunl0") == []
    assert box.have("eth0") == ["10.1.0.10/24"]


def test_a_link_that_has_just_gone_holds_its_address_back(box: Box) -> None:
    """Its role is still assigned when the kernel's word of its end has been taken in already."""
    ip("link del kilo0")
    box.view.load()
    box.addresses.update({"interface": interface()}, ())
    (outcome,) = box.addresses.apply()
    assert outcome.waits
    assert "no wireguard device yet" in outcome.error


def test_a_link_that_vanishes_between_reading_and_changing(box: Box) -> None:
    """What was read says that it is there; it costs its own address."""
    box.addresses.update({"interface": interface(), "tunnel": Tunnel("ipip", "10.2.0.1/32")}, ())
    box.addresses.load()
    ip("link del kilo0")
    failed, done = sorted(box.addresses.apply(), key=lambda outcome: not outcome.error)
    assert failed.key == "address/kilo0/10.4.0.1/16" and failed.error.endswith("No such device (ENODEV)")
    assert done == Outcome("address/tunl0/10.2.0.1/32") and box.have("tunl0") == ["10.2.0.1/32"]


def test_an_address_that_is_refused_is_tried_again_with_backoff(host: Host) -> None:
    """Though the plan's meaning is looked at again in every pass."""
    with contextlib.closing(Refusing(lambda request: errno.EPERM * (request.kind == RTM_NEWADDR))) as netlink:
        box = Box(host, netlink)
        tries = []
        for second in range(20):
            box.addresses._clock = lambda second=second: float(second)  # type: ignore[misc]
            before = len(netlink.refused)
            box.run(*([interface()] if not second else []))
            if len(netlink.refused) > before:
                tries.append(second)
        assert tries == [0, 1, 3, 7, 15]
        box.run(interface(address="10.4.0.2/16"))
        assert len(netlink.refused) == 6, "another address is another matter"


def test_who_keeps_taking_an_address_away_is_not_raced(box: Box) -> None:
    now = 0.0
    box.addresses._clock = lambda: now
    box.run(interface())
    key = "address/kilo0/10.4.0.1/16"
    repaired = []
    for tenth in range(200):
        now = tenth / 10
        if box.have():
            ip("addr del 10.4.0.1/16 dev kilo0")
        box.view.load()
        box.run()
        if box.have():
            repaired.append(now)
    assert repaired[:10] == [tenth / 10 for tenth in range(10)]
    assert len(repaired) == 14, "after 1, 2, 4 and 8 seconds"
    assert box.addresses.fights.going_on(now) == {key}
