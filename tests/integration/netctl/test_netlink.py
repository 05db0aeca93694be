"""The netlink socket and its messages, against the kernel and against pyroute2."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterator

import pytest

from kilo.errors import ProtocolError, TemporaryError
from kilo.netctl.netlink import messages as m
from kilo.netctl.netlink import socket as netlink_socket
from kilo.netctl.netlink.attributes import attribute, nested, pack_ip, parse, text, u32, walk
from kilo.netctl.netlink.listing import Listing
from kilo.netctl.netlink.socket import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Events,
    EventsLost,
    KernelError,
    Message,
    Netlink,
    Request,
)
from tests.integration.netctl.hosts import Host, ip, lines
from tests.unit.netctl.stub_kernel import DONE, INTERRUPTED, MULTI, Far, done, message, refusal, wired


@pytest.fixture
def netlink(host: Host) -> Iterator[Netlink]:
    with contextlib.closing(Netlink()) as made:
        yield made


def add(*routes: m.RouteInfo) -> list[Request]:
    return [Request(m.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, m.pack_route(route)) for route in routes]


def blackhole(n: int, **changes: object) -> m.RouteInfo:
    base = m.RouteInfo(f"10.{64 + n // 250}.{n % 250}.0/24", 254, 1, "", "", False, 171, 0)
    return base._replace(**changes)  # type: ignore[arg-type]


def test_each_change_of_a_batch_has_its_own_answer(netlink: Netlink) -> None:
    wrong = {7: "EINVAL", 300: "ENODEV", 449: "EEXIST", 450: "EINVAL"}
    routes = [blackhole(n) for n in range(451)]
    routes[7] = blackhole(7, src="203.0.113.1")
    routes[300] = blackhole(300, link=77)
    routes[449] = blackhole(0)
    routes[450] = blackhole(450, src="203.0.113.1")
    answers = netlink.change(add(*routes))
    got = {n: errno.errorcode[answer.errno] for n, answer in enumerate(answers) if answer is not None}
    assert got == wrong
    assert len(lines("route")) == 451 - len(wrong)
    assert netlink.sent == 451


def test_the_kernels_own_words_are_in_the_error(netlink: Netlink) -> None:
    (error,) = netlink.change(add(blackhole(1, src="203.0.113.1")))
    assert error is not None and error.errno == errno.EINVAL
    assert str(error) == "Invalid prefsrc address: Invalid argument (EINVAL)"


def test_a_question_that_the_kernel_refuses(netlink: Netlink) -> None:
    with pytest.raises(KernelError, match="EOPNOTSUPP"):
        netlink.dump(4000, b"\0" * 16)
    assert netlink.dump(4000, b"\0" * 16, optional=True) == []
    assert netlink.dump(m.RTM_GETLINK, m.list_links()), "the socket still works"


def test_a_listing_longer_than_one_datagram(netlink: Netlink) -> None:
    assert netlink.change(add(*map(blackhole, range(3000)))) == [None] * 3000
    found = [m.parse_route(x) for x in netlink.dump(m.RTM_GETROUTE, m.list_routes(2, 171))]
    assert found == [blackhole(n) for n in range(3000)]
    assert netlink.dump(m.RTM_GETROUTE, m.list_routes(2, 172)) == []


def test_dump_that_was_interrupted_is_repeated() -> None:
    with wired(Netlink) as (netlink, far):
        far.answers(message(16, 1, b"old", INTERRUPTED | MULTI), done(1))
        far.answers(message(16, 2, b"half"), done(2, flags=INTERRUPTED | MULTI))
        far.answers(message(16, 3, b"new"), done(3))
        (found,) = netlink.dump(18, b"")
        assert found.data[found.start : found.end] == b"new"
        assert [sequence for _, _, sequence in far.asked()] == [1, 2, 3]


def test_dump_that_is_always_interrupted_ends_after_some_tries() -> None:
    with wired(Netlink) as (netlink, far):
        for sequence in range(1, 20):
            far.answers(done(sequence, flags=INTERRUPTED | MULTI))
        with pytest.raises(TemporaryError, match="change faster than they can be read"):
            netlink.dump(18, b"")
        assert len(far.asked()) == 5


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EMSGSIZE])
def test_dump_that_the_kernel_could_not_complete_is_an_error(error: int) -> None:
    """The error is in what ends the listing; what came before is only a part."""
    with wired(Netlink) as (netlink, far):
        far.answers(message(16, 1, b"a part"), done(1, error))
        with pytest.raises(KernelError) as caught:
            netlink.dump(18, b"")
        assert caught.value.errno == error


def test_end_of_a_dump_without_a_body_is_no_error() -> None:
    with wired(Netlink) as (netlink, far):
        far.answers(message(DONE, 1))
        assert netlink.dump(18, b"") == []


def test_answers_to_earlier_questions_are_passed_over() -> None:
    with wired(Netlink) as (netlink, far):
        far.answers(
            refusal(7, errno.EPERM), done(0), message(16, 9, b"late"), message(16, 1, b"own"), done(1)
        )
        (found,) = netlink.dump(18, b"")
        assert found.data[found.start : found.end] == b"own"


def test_datagram_longer_than_the_buffer_is_an_error() -> None:
    """A part of a listing would pass for all of it."""
    many = b"".join(message(16, 1, bytes(1000)) for _ in range(70))
    with wired(Netlink) as (netlink, far):
        far.answers(many, done(1))
        with pytest.raises(TemporaryError, match="Message too long"):
            netlink.dump(18, b"")


@pytest.mark.parametrize("cut", [1, 8, 17])
def test_message_that_is_cut_off_is_an_error(cut: int) -> None:
    with wired(Netlink) as (netlink, far):
        far.answers(message(16, 1, b"whole") + message(16, 1, b"cut!")[:-cut], done(1))
        with pytest.raises(TemporaryError, match="cut off"):
            netlink.dump(18, b"")


def test_kernel_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink_socket, "_TIMEOUT", 0.01)
    with wired(Netlink) as (netlink, _):
        for ask in (
            lambda: netlink.dump(18, b""),
            lambda: netlink.ask(18, b""),
            lambda: netlink.change([Request(16, 0, b"")]),
        ):
            with pytest.raises(TemporaryError, match="does not answer"):
                ask()


def listing(far: Far) -> Listing:
    made = Listing(NETLINK_NETFILTER, 1 << 8 | 1, bytes(4))
    real, made._socket = made._socket, far.near
    far.near.setblocking(False)
    real.close()
    return made


def test_listing_that_the_kernel_could_not_complete_is_an_error() -> None:
    with contextlib.closing(Far()) as far, contextlib.closing(listing(far)) as parts:
        far.answers(message(256, 1, bytes(8)))
        assert len(parts.read()[0]) == 1
        far.answers(done(1, errno.ENOMEM))
        with pytest.raises(KernelError, match="ENOMEM"):
            parts.read()


def test_listing_with_a_datagram_that_does_not_fit_is_an_error() -> None:
    with contextlib.closing(Far()) as far, contextlib.closing(listing(far)) as parts:
        far.answers(b"".join(message(256, 1, bytes(1000)) for _ in range(40)))
        with pytest.raises(TemporaryError, match="Message too long"):
            parts.read()


@pytest.mark.parametrize(
    "damaged",
    [b"".join(message(24, 0, bytes(1000)) for _ in range(70)), message(24, 0, bytes(12))[:-4]],
    ids=["too long", "cut off"],
)
def test_event_that_is_not_whole_counts_as_lost(damaged: bytes) -> None:
    with (
        contextlib.closing(Far()) as far,
        contextlib.closing(Events(NETLINK_ROUTE, m.GROUPS_ROUTE)) as events,
    ):
        real, events._socket = events._socket, far.near
        real.close()
        far.near.setblocking(False)
        far.answers(damaged, message(24, 0, bytes(12)))
        with pytest.raises(EventsLost):
            events.read(10)
        far.answers(message(25, 0, bytes(12)))
        assert [event.kind for event in events.read(10)] == [25]


def test_events_arrive_and_lost_ones_are_noticed(netlink: Netlink) -> None:
    with contextlib.closing(Events(NETLINK_ROUTE, m.GROUPS_ROUTE, buffer=20_000)) as events:
        assert events.read(10) == []
        ip("route add 10.9.0.0/24 dev lo")
        seen = [m.parse_route(x) for x in events.read(10) if x.kind == m.RTM_NEWROUTE]
        assert [route.dst for route in seen if route] == ["10.9.0.0/24"]
        netlink.change(add(*map(blackhole, range(1000))))
        with pytest.raises(EventsLost):
            for _ in range(1000):
                assert events.read(10)
        ip("route del 10.9.0.0/24")
        assert [x.kind for x in events.read(10)] == [m.RTM_DELROUTE], "and the socket still works"


def test_events_say_who_caused_them(netlink: Netlink) -> None:
    with contextlib.closing(Events(NETLINK_ROUTE, m.GROUPS_ROUTE)) as events:
        netlink.change(add(blackhole(1)))
        ip("route add 10.9.0.0/24 dev lo")
        assert [x.port == netlink.port for x in events.read(10)] == [True, False]


def test_links_and_addresses_are_read(host: Host, netlink: Netlink) -> None:
    host.wire(address="10.1.0.10/24")
    ip("link set eth0 mtu 1400")
    ip("link add br0 type bridge")
    ip("addr add 203.0.113.1 peer 203.0.113.2/32 dev eth0")
    ip("addr add fd00::1/64 dev eth0 nodad")
    links = {x.name: x for x in map(m.parse_link, netlink.dump(m.RTM_GETLINK, m.list_links())) if x}
    assert links["eth0"][2:5] == (1400, "veth", True)
    assert links["br0"][2:] == (1500, "bridge", False, False, 0)
    found = [m.parse_address(x) for x in netlink.dump(m.RTM_GETADDR, m.list_addresses())]
    held = [a.interface for a in found if a and a.link == links["eth0"].number]
    assert held[:3] == ["10.1.0.10/24", "203.0.113.1/32", "fd00::1/64"]


def test_a_links_event_about_a_bridge_port_is_not_about_the_link(host: Host, netlink: Netlink) -> None:
    host.wire()
    ip("link add br0 type bridge")
    with contextlib.closing(Events(NETLINK_ROUTE, [m.GROUP_LINK])) as events:
        ip("link set eth0 master br0")
        ip("link set eth0 nomaster")
        gone = [m.parse_link(x) for x in events.read(100) if x.kind == m.RTM_DELLINK]
        assert gone == [None]


def test_messages_mean_the_same_to_pyroute2() -> None:
    from pyroute2.netlink.rtnl.fibmsg import fibmsg
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    def decoded(kind: type, body: bytes) -> object:
        header = struct.pack("=IHHII", 16 + len(body), 0, 0, 0, 0)
        message = kind(header + body)
        message.decode()
        return message

    route = decoded(
        rtmsg, m.pack_route(m.RouteInfo("10.2.1.0/24", 1107, 5, "10.4.0.2", "10.1.0.1", True, 171, 9))
    )
    assert (route["dst_len"], route["proto"], route["flags"], route["type"]) == (24, 171, 4, 1)  # type: ignore[index]
    assert dict(route["attrs"]) == {  # type: ignore[index]
        "RTA_DST": "10.2.1.0",
        "RTA_TABLE": 1107,
        "RTA_OIF": 5,
        "RTA_GATEWAY": "10.4.0.2",
        "RTA_PREFSRC": "10.1.0.1",
        "RTA_PRIORITY": 9,
    }
    rule = decoded(fibmsg, m.pack_rule(m.RuleInfo(2, 1107, "10.2.0.0/24", "10.1.0.1/32", "kilo0", 7, 171)))
    assert (rule["dst_len"], rule["src_len"], rule["action"]) == (32, 24, 1)  # type: ignore[index]
    assert dict(rule["attrs"]) == {  # type: ignore[index]
        "FRA_DST": "10.1.0.1",
        "FRA_SRC": "10.2.0.0",
        "FRA_TABLE": 1107,
        "FRA_PRIORITY": 7,
        "FRA_PROTOCOL": 171,
        "FRA_IIFNAME": "kilo0",
    }
    address = decoded(ifaddrmsg, m.pack_address(m.AddressInfo(5, "fd04::1/64", 171)))
    assert (address["prefixlen"], address["index"]) == (64, 5)  # type: ignore[index]
    assert dict(address["attrs"])["IFA_LOCAL"] == "fd04::1"  # type: ignore[index]


@pytest.mark.parametrize(("kind", "number"), [("vxlan", 15), ("geneve", 5), ("bareudp", 1)])
def test_tunnel_port_is_read_as_pyroute2_writes_it(kind: str, number: int) -> None:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg()
    names = {"vxlan": "IFLA_VXLAN_PORT", "geneve": "IFLA_GENEVE_PORT"}
    if kind in names:
        data = {"attrs": [(names[kind], 51820)]}
        described = [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", data)]
        message["attrs"] = [("IFLA_LINKINFO", {"attrs": described})]
        message.encode()
        body = bytes(message.data)[16:]
    else:  # pyroute2 does not know this kind
        port = attribute(number, (51820).to_bytes(2, "big"))
        body = m.pack_link() + nested(18, attribute(1, kind.encode()), nested(2, port))
    assert m.tunnel_port(Message(m.RTM_NEWLINK, 0, 0, body, 0, len(body))) == 51820
    assert m.tunnel_port(Message(m.RTM_NEWLINK, 0, 0, m.pack_link(kind=kind), 0, len(m.pack_link()))) == 0


def test_attributes_of_any_length_are_walked() -> None:
    data = text(3, "kilo0") + u32(4, 7) + nested(5, attribute(1, b"x")) + b"\x03\x00"
    assert parse(data, 0, len(data)) == {3: b"kilo0\0", 4: b"\7\0\0\0", 5: b"\5\0\1\0x\0\0\0"}
    assert [kind for kind, _, _ in walk(data, 0, len(data))] == [3, 4, 5]
    broken = struct.pack("=HH", 200, 1) + b"abcd"
    assert parse(broken, 0, len(broken)) == {}
    assert list(walk(broken, 0, len(broken))) == []


def test_text_that_is_no_address_is_refused() -> None:
    with pytest.raises(ProtocolError, match="is not an IP address"):
        pack_ip("10.1")
