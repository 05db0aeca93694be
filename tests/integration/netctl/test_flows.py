"""Messages about connection tracking: entries that the conntrack program makes, read and deleted."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest

from kilo.netctl.netlink import flows
from kilo.netctl.netlink.attributes import u32
from kilo.netctl.netlink.flows import (
    ANSWERED,
    GET,
    TCP,
    UDP,
    Flow,
    delete_flow,
    is_zoned,
    list_address,
    list_flows,
    parse_flow,
)
from kilo.netctl.netlink.listing import Listing
from kilo.netctl.netlink.socket import NETLINK_NETFILTER, KernelError, Netlink
from tests.integration.netctl.hosts import Host
from tests.integration.netctl.test_worker_flows import conntrack, put


def listed(body: bytes) -> list[Flow]:
    found: list[Flow] = []
    with contextlib.closing(Listing(NETLINK_NETFILTER, GET, body)) as listing:
        done = False
        while not done:
            messages, done = listing.read()
            found += map(parse_flow, messages)
    return found


def delete(*found: Flow) -> list[KernelError | None]:
    with contextlib.closing(Netlink(NETLINK_NETFILTER)) as netlink:
        return netlink.change([delete_flow(flow) for flow in found])


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def sources(found: list[Flow]) -> set[str]:
    return {socket.inet_ntop(socket.AF_INET6 if len(f.source) == 16 else 2, f.source) for f in found}


@pytest.fixture
def kernel(host: Host) -> Iterator[None]:
    put("udp", "10.0.0.1", "203.0.113.1", "--src-nat", "198.51.100.1")
    put("udp", "10.0.0.2", "203.0.113.1", "--dst-nat", "203.0.113.2", "-u", "SEEN_REPLY")
    put("tcp", "10.0.0.3", "203.0.113.1", "-u", "SEEN_REPLY,ASSURED")
    put("tcp", "2001:db8::4", "2001:db8::1")
    put("udp", "2001:db8::5", "2001:db8::1")
    icmp = ("--icmp-type", "8", "--icmp-code", "0", "--icmp-id", "7", "-t", "300")
    conntrack("-I", "-p", "icmp", "-s", "10.0.0.6", "-d", "203.0.113.1", *icmp)
    put("udp", "10.0.0.7", "203.0.113.1", "--zone", "3")
    yield


@pytest.mark.usefixtures("kernel")
def test_entries_are_read_as_the_program_made_them() -> None:
    found = {flow.source: flow for flow in listed(list_flows())}
    assert len(found) == 7
    one = found[ip("10.0.0.1")]
    assert (one.protocol, one.source_translated, one.destination_translated) == (UDP, True, False)
    assert (one.destination, one.answer_source) == (ip("203.0.113.1"),) * 2
    assert one.answer_destination == ip("198.51.100.1") and not one.answered
    two = found[ip("10.0.0.2")]
    assert (two.source_translated, two.destination_translated, two.answered) == (False, True, True)
    assert two.answer_source == ip("203.0.113.2")
    three = found[ip("10.0.0.3")]
    assert (three.protocol, three.source_translated, three.answered) == (TCP, False, True)
    assert found[ip("2001:db8::4")].destination == ip("2001:db8::1")
    assert found[ip("10.0.0.6")].protocol == socket.IPPROTO_ICMP
    assert [flow.source for flow in found.values() if is_zoned(flow)] == [ip("10.0.0.7")]


@pytest.mark.usefixtures("kernel")
def test_the_quick_way_to_read_an_entry_agrees_with_the_thorough_one() -> None:
    found = [flow for flow in listed(list_flows()) if not is_zoned(flow)]
    assert [flows._usual(flow.message) for flow in found] == found
    assert [flows._any(flow.message) for flow in found] == found


@pytest.mark.usefixtures("kernel")
def test_the_kernel_lists_what_it_is_asked_for() -> None:
    assert sources(listed(list_flows(6))) == {"2001:db8::4", "2001:db8::5"}
    assert sources(listed(list_flows(6, UDP))) == {"2001:db8::5"}
    assert sources(listed(list_flows(4, TCP, ANSWERED, ANSWERED))) == {"10.0.0.3"}
    unanswered = {"10.0.0.1", "2001:db8::4", "2001:db8::5", "10.0.0.6", "10.0.0.7"}
    assert sources(listed(list_flows(mask=ANSWERED))) == unanswered
    assert sources(listed(list_address(ip("198.51.100.1"), "answer", "destination"))) == {"10.0.0.1"}
    assert sources(listed(list_address(ip("203.0.113.2"), "answer", "source"))) == {"10.0.0.2"}
    assert sources(listed(list_address(ip("10.0.0.3"), "first", "source"))) == {"10.0.0.3"}
    assert sources(listed(list_address(ip("203.0.113.9"), "first", "destination"))) == set()


@pytest.mark.usefixtures("kernel")
def test_entries_are_deleted_one_by_one() -> None:
    everything = listed(list_flows())
    gone = [flow for flow in everything if flow.source in (ip("10.0.0.1"), ip("2001:db8::4"), ip("10.0.0.7"))]
    assert delete(*gone) == [None] * 3
    assert sources(listed(list_flows())) == {"10.0.0.2", "10.0.0.3", "2001:db8::5", "10.0.0.6"}
    (error, *rest) = delete(gone[0], *listed(list_flows(6)))
    assert error is not None and error.errno == errno.ENOENT and rest == [None]


@pytest.mark.usefixtures("kernel")
def test_an_entry_with_another_number_stays() -> None:
    """It has taken the place of the one that was read."""
    (found,) = listed(list_address(ip("10.0.0.3"), "first", "source"))
    request = delete_flow(found)
    number = u32(12, 0)
    assert request.body[-len(number) : -4] == number[:-4]
    other = request._replace(body=request.body[: -len(number)] + number)
    with contextlib.closing(Netlink(NETLINK_NETFILTER)) as netlink:
        (error,) = netlink.change([other])
    assert error is not None and error.errno == errno.ENOENT
    assert "10.0.0.3" in sources(listed(list_flows()))


def test_what_the_kernel_refuses_is_an_error(host: Host) -> None:
    with pytest.raises(KernelError, match="EOPNOTSUPP"):
        listed(list_flows(0, TCP))
