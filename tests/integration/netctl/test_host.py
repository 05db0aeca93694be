"""What is known of the host: by listing, and by events; and the facts made of it."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from kilo.config import Config
from kilo.mesh.addresses import HostAddresses, detect
from kilo.model.host import Link
from kilo.netctl.facts import HostnameIPs, host_facts, resolve
from kilo.netctl.host import Host as HostView
from kilo.netctl.host import Roles
from kilo.netctl.netlink.attributes import attribute, nested, text, u32
from kilo.netctl.netlink.messages import GROUP_LINK, GROUPS_ADDRESS, RTM_NEWLINK, AddressInfo, LinkInfo
from kilo.netctl.netlink.socket import NETLINK_ROUTE, Events, Message, Netlink
from tests.feeding import within
from tests.integration.netctl.hosts import Host, ip


@pytest.fixture
def view(host: Host) -> Iterator[HostView]:
    host.wire()
    with contextlib.closing(Netlink()) as netlink:
        made = HostView(netlink)
        made.load()
        yield made


@pytest.mark.timing
def test_events_keep_the_view_as_a_listing_would_make_it(view: HostView) -> None:
    with (
        contextlib.closing(Events(NETLINK_ROUTE, [GROUP_LINK, *GROUPS_ADDRESS])) as events,
        contextlib.closing(Netlink()) as netlink,
    ):
        for command in (
            "addr add 10.1.0.11/24 dev eth0",
            "link set eth0 mtu 1400",
            "link add br0 type bridge",
            "link set br0 up",
            "addr add fd00::1/64 dev br0 nodad",
            "addr del 10.1.0.11/24 dev eth0",
            "link set eth0-far down",
            "link del br0",
            "link set eth0 name uplink",
        ):
            ip(command)
            heard = 0

            def told() -> bool:
                """An address of IPv6 is announced by a task of the kernel's, a little later."""
                nonlocal heard
                heard += sum(view.take(message) for message in events.read(100))
                return heard > 0

            within(1.0, told, command)

            def agrees() -> bool:
                """The kernel may have done more since, such as give a bridge its link-local address."""
                other = HostView(netlink)
                other.load()
                for message in events.read(100):
                    view.take(message)
                held = {n: set(a) for n, a in view.addresses.items() if a}
                listed = {n: set(a) for n, a in other.addresses.items() if a}
                return (view.links, held) == (other.links, listed)

            within(1.0, agrees, command)
        ip("link set uplink mtu 1400")
        assert sum(view.take(message) for message in events.read(100)) == 0, "nothing changed"
    number = next(n for n, link in view.links.items() if link.name == "uplink")
    assert number in view.touched


def test_who_holds_an_address(view: HostView) -> None:
    holder = view.holder("10.1.0.10")
    assert holder is not None and holder.name == "eth0" and holder == view.named("eth0")
    assert view.holder("10.1.0.99") is None
    assert view.named("eth9") is None


def test_the_default_routes_interface(host: Host, view: HostView) -> None:
    def default() -> str:
        view.load_default()
        link = view.links.get(view.default_link)
        return link.name if link else ""

    host.wire("eth1", "10.9.0.1/24")
    ip("addr add fd00::1/64 dev eth1 nodad")
    view.load()
    assert default() == ""
    ip("-6 route add default via fd00::99 dev eth1")
    assert default() == "eth1"
    ip("route add default via 10.1.0.1 dev eth0 metric 100")
    assert default() == "eth0", "IPv4's counts first"
    ip("route add default via 10.9.0.9 dev eth1 metric 50")
    assert default() == "eth1", "the lowest metric counts"
    ip("route add default via 10.9.0.9 dev lo onlink table 77")
    assert default() == "eth1", "other tables do not count"


def test_facts_leave_out_what_identifies_nobody(host: Host, view: HostView) -> None:
    host.wire("pod", "10.2.0.1/24")
    ip("addr flush dev pod")
    ip("link add kilo0 type bridge")
    ip("addr add 203.0.113.5/24 dev eth0")
    ip("route add default via 10.1.0.1")
    view.load()
    view.load_default()
    config = Config(interface="kilo0", compatibility="cilium")
    facts = host_facts(view, config, "KEY=", ("10.1.0.10",), "kernel")
    number = {link.name: n for n, link in view.links.items()}
    assert facts.links == (
        Link("eth0", number["eth0"], 1500, "veth", True, ("10.1.0.10/24", "203.0.113.5/24")),
        Link("kilo0", number["kilo0"], 1500, "bridge", False, (), carrier=False),
    )
    assert facts.default_link == "eth0"
    assert facts.ignored_links == ("kilo0", "cilium_tunl", "tunl0", "kube-bridge")
    assert (facts.public_key, facts.hostname_ips, facts.wireguard) == ("KEY=", ("10.1.0.10",), "kernel")


def test_facts_say_what_decides_whether_a_link_gives_the_internal_ip(host: Host, view: HostView) -> None:
    ip("link add br0 type bridge")
    ip("addr add 10.7.0.1/24 dev br0")
    ip("link set br0 up")
    ip("link add cni0 type bridge")
    ip("addr add 10.42.0.1/24 dev cni0")
    ip("link add pod type veth peer name pod-far")
    ip("link set pod master cni0")
    view.load()
    up = next(link for link in view.links.values() if link.name == "eth0-far")
    wired = up._replace(kind="", number=99, name="nic", master=view.named("br0").number)  # type: ignore[union-attr]
    view.links[99] = wired
    facts = host_facts(view, Config(interface="kilo0"), "KEY=", (), "")
    found = {link.name: (link.kind, link.up, link.uplink) for link in facts.links}
    assert found == {
        "eth0": ("veth", True, False),
        "br0": ("bridge", True, True),
        "cni0": ("bridge", False, False),
    }


@pytest.mark.parametrize("name", ["docker0", "guests"])
def test_bridge_of_containers_gives_a_host_with_a_public_address_no_internal_ip(
    host: Host, view: HostView, name: str
) -> None:
    """From the kernel's links to the planner's choice."""
    ip("addr flush dev eth0")
    ip("addr add 203.0.113.5/24 dev eth0")
    ip("route add default via 203.0.113.1")
    ip(f"link add {name} type bridge")
    ip(f"addr add 172.17.0.1/16 dev {name}")

    def found() -> HostAddresses:
        view.load()
        view.load_default()
        return detect(host_facts(view, Config(interface="kilo0"), "KEY=", (), ""))

    assert found() == HostAddresses("", "203.0.113.5/24"), "it is down"
    ip(f"link set {name} up")
    ip("link add pod type veth peer name pod-far")
    ip(f"link set pod master {name} up")
    assert found() == HostAddresses("", "203.0.113.5/24")
    ip("addr add 10.7.0.5/24 dev eth0")
    assert found() == HostAddresses("10.7.0.5/24", "203.0.113.5/24")


def test_facts_of_a_host_whose_cable_was_out_are_as_before(host: Host, view: HostView) -> None:
    def facts() -> Link:
        return next(k for k in host_facts(view, Config(interface="kilo0"), "KEY=", (), "").links)

    before = facts()
    with contextlib.closing(Events(NETLINK_ROUTE, [GROUP_LINK])) as events:

        def heard() -> list[bool]:
            return [view.take(message) for message in events.read(100)]

        ip("link set eth0-far down")
        taken: list[bool] = []

        def is_out() -> bool:
            taken.extend(heard())
            return not view.named("eth0").carrier  # type: ignore[union-attr]

        within(1.0, is_out, "the carrier is lost")
        assert before.carrier and facts() == before
        view.load()
        assert facts() == before
        ip("link set eth0 down")
        within(1.0, lambda: any(heard()), "the link is set down")
        assert (facts().up, facts().carrier) == (False, False)
        ip("link set eth0 up")
        within(1.0, lambda: any(heard()), "the link is set up")
        assert (facts().up, facts().carrier) == (True, False)
        ip("link set eth0-far up")
        within(1.0, lambda: bool(heard()) and facts().carrier, "the carrier is back")


@pytest.fixture
def empty() -> Iterator[HostView]:
    """A host of which nothing is known yet."""
    with contextlib.closing(Netlink()) as netlink:
        yield HostView(netlink)


def link_news(name: str, kind: str, *, up: bool = True, carrier: bool = True, master: int = 0) -> Message:
    """An event that says how the interface 7 is now."""
    body = struct.pack("=BxHiII", 0, 0, 7, up | (0x40 if carrier else 0), 0)
    body += text(3, name) + u32(4, 1500) + nested(18, attribute(1, kind.encode()))
    body += u32(10, master) if master else b""
    return Message(RTM_NEWLINK, 0, 0, body, 0, len(body))


@pytest.mark.parametrize(("kind", "is_news"), [("veth", False), ("tun", False), ("vlan", True)])
def test_port_that_joins_a_bridge_is_news_unless_it_is_a_containers(
    empty: HostView, kind: str, is_news: bool
) -> None:
    assert empty.take(link_news("port", kind))
    assert empty.take(link_news("port", kind, master=9)) is is_news
    assert empty.take(link_news("port", kind)) is is_news


def test_carrier_of_a_link_without_address_is_no_news(empty: HostView) -> None:
    assert empty.take(link_news("port", "vlan", carrier=False))
    assert not empty.take(link_news("port", "vlan"))
    assert not empty.take(link_news("port", "vlan", carrier=False))
    assert empty.carried == {7}
    assert empty.take(link_news("port", "vlan", up=False, carrier=False))
    assert empty.take(link_news("port", "vlan", carrier=False))
    empty.addresses[7] = {"10.1.0.1/24": AddressInfo(7, "10.1.0.1/24", 0)}
    assert empty.take(link_news("port", "vlan")), "the first carrier decides whether the address counts"
    assert not empty.take(link_news("port", "vlan", carrier=False))
    assert not empty.take(link_news("port", "vlan"))


def test_a_role_changes_the_generation_only_when_it_moves() -> None:
    roles = Roles()
    link = LinkInfo(3, "kilo0", 1420, "tun", True)
    moves = []
    for step in (None, link, link._replace(mtu=1400), link._replace(up=False), link._replace(number=4), None):
        before = roles.generation
        roles.assign("wireguard", step)
        moves.append(roles.generation > before)
    assert moves == [False, True, False, True, True, True]
    assert roles.number("wireguard") == 0 and roles.numbers() == set()


def test_names_resolve_off_the_loop_and_the_first_answer_is_kept() -> None:
    assert resolve("10.1.0.10") == ("10.1.0.10",)
    assert resolve("nowhere.invalid") == () == resolve("bad..name")
    answered = threading.Event()
    posted: list[Callable[[], None]] = []

    def post(callback: Callable[[], None]) -> None:
        posted.append(callback)
        answered.set()

    tries: list[tuple[str, ...]] = []
    names = HostnameIPs("127.0.0.7", post, lambda: tries.append(names.addresses))
    names.ask()
    names.ask()
    assert answered.wait(5)
    posted.pop()()
    assert tries == [("127.0.0.7",)]
    names.ask()
    assert not posted and not names._asking


def test_interfaces_with_an_address_in_a_network_are_named(view: HostView) -> None:
    assert view.names_within("10.1.0.0/24") == {"eth0"}
    assert view.names_within("10.1.0.0/30") == set()
    assert "lo" in view.names_within("127.0.0.0/8")
