"""The netlink messages of ipset, against the kernel and against what the ipset program says."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from kilo.errors import TemporaryError
from kilo.netctl.firewall.backend import FILL_ORDER, member_of
from kilo.netctl.firewall.ipset import Ipset, IpsetError, IpsetMissing, in_kernel, name_of
from kilo.netctl.netlink import socket as netlink_socket
from kilo.netctl.netlink.attributes import text
from kilo.netctl.netlink.socket import NETLINK_NETFILTER, Netlink
from tests.integration.netctl.firewall.hosts import Namespace
from tests.unit.netctl.stub_kernel import INTERRUPTED, MULTI, Far, done, message, refusal, wired

T = TypeVar("T")
NAME, NAME6 = "kilo-no-masquerade-to-v4", "kilo-no-masquerade-to-v6"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


def asked(namespace: Namespace, question: Callable[[Ipset], T]) -> T:
    def ask() -> T:
        with Ipset() as ipset:
            return question(ipset)

    return namespace.call(ask)


def listed(namespace: Namespace, name: str) -> set[str]:
    """The members of a set in the words of the ipset program."""
    return set(namespace.run("ipset", "list", name).partition("Members:\n")[2].split("\n")) - {""}


def members(*networks: str) -> set[bytes]:
    return {member_of(network)[1] for network in networks}


def test_members_go_in_and_out(namespace: Namespace) -> None:
    def change(ipset: Ipset) -> None:
        ipset.check()
        ipset.create(NAME, 4)
        ipset.create(NAME, 4)
        ipset.create(NAME6, 6)
        ipset.add(NAME, members("10.2.0.0/24", "10.4.0.1/32", "192.168.0.0/16"))
        ipset.add(NAME, members("10.2.0.0/24"))
        ipset.add(NAME6, members("fd00::/16", "2001:db8::1/128"))
        ipset.delete(NAME, members("10.4.0.1/32", "10.9.9.9/32"))

    asked(namespace, change)
    assert listed(namespace, NAME) == {"10.2.0.0/24", "192.168.0.0/16"}
    assert listed(namespace, NAME6) == {"fd00::/16", "2001:db8::1"}
    assert asked(namespace, lambda i: i.members(NAME)) == members("10.2.0.0/24", "192.168.0.0/16")
    assert asked(namespace, lambda i: i.members(NAME6)) == members("fd00::/16", "2001:db8::1/128")


@pytest.mark.parametrize(
    ("name", "version", "pattern"), [(NAME, 4, "10.{}.{}.0/24"), (NAME6, 6, "fd00:{}:{}::/48")]
)
def test_more_members_than_one_message_holds(
    namespace: Namespace, name: str, version: int, pattern: str
) -> None:
    many = members(*(pattern.format(i // 200, i % 200) for i in range(5500)))
    asked(namespace, lambda i: i.create(name, version))
    asked(namespace, lambda i: i.add(name, many))
    assert asked(namespace, lambda i: i.members(name)) == many
    asked(namespace, lambda i: i.delete(name, many))
    assert listed(namespace, name) == set()


def test_everything_is_two_halves(namespace: Namespace) -> None:
    asked(namespace, lambda i: i.create(NAME, 4))
    asked(namespace, lambda i: i.create(NAME6, 6))
    asked(namespace, lambda i: i.add(NAME, in_kernel(members("0.0.0.0/0", "10.0.0.0/8"))))
    asked(namespace, lambda i: i.add(NAME6, in_kernel(members("::/0"))))
    assert listed(namespace, NAME) == {"0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8"}
    assert listed(namespace, NAME6) == {"::/1", "8000::/1"}


def test_a_member_with_an_option_is_none_of_ours(namespace: Namespace) -> None:
    namespace.run("ipset", "create", NAME, "hash:net")
    namespace.run("ipset", "add", NAME, "10.0.0.0/8", "nomatch")
    namespace.run("ipset", "add", NAME, "10.1.0.0/16")
    found = asked(namespace, lambda i: i.members(NAME))
    assert found == members("10.1.0.0/16") | {member + b"!" for member in members("10.0.0.0/8")}


def test_sets_of_others_are_not_named_and_wrong_types_are_told(namespace: Namespace) -> None:
    for name, kind in (
        ("kilogram", "hash:net"),
        ("kilo-mine", "hash:net"),
        (NAME, "hash:ip"),
        ("x-v4", "hash:net"),
    ):
        namespace.run("ipset", "create", name, kind)
    namespace.run("ipset", "create", NAME6, "hash:net", "family", "inet")
    assert sorted(asked(namespace, lambda i: i.names())) == [NAME, NAME6]
    assert asked(namespace, lambda i: i.members(NAME)) is None
    assert asked(namespace, lambda i: i.members(NAME6)) is None


def test_what_the_kernel_refuses_is_an_error_in_words(namespace: Namespace) -> None:
    with pytest.raises(IpsetError, match=f"{NAME}: No such file or directory"):
        asked(namespace, lambda i: i.members(NAME))
    namespace.run("ipset", "create", NAME, "hash:net", "maxelem", "1")
    with pytest.raises(IpsetError, match=f"{NAME}: it is full"):
        asked(namespace, lambda i: i.add(NAME, members("10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24")))
    namespace.run("iptables-legacy", "-A", "INPUT", "-m", "set", "--match-set", NAME, "src")
    with pytest.raises(IpsetError, match=f"{NAME}: rules still refer to it"):
        asked(namespace, lambda i: i.destroy(NAME))


LIST = 6 << 8 | 7
FAMILY = bytes((2, 0, 0, 0))


def stubbed(*answers: bytes) -> contextlib.AbstractContextManager[tuple[Ipset, Far]]:
    """Ipset on a kernel that gives these answers."""

    @contextlib.contextmanager
    def made() -> Iterator[tuple[Ipset, Far]]:
        with wired(lambda: Netlink(NETLINK_NETFILTER)) as (netlink, far):
            far.answers(*answers)
            yield Ipset(lambda _: netlink), far

    return made()


def named(sequence: int, *names: str, flags: int = MULTI) -> bytes:
    """The kernel's answers about sets of these names."""
    return b"".join(message(LIST, sequence, FAMILY + text(2, name), flags) for name in names)


def test_dump_of_sets_that_was_interrupted_is_repeated() -> None:
    """What changes meanwhile can be missing, and a set that is missing would be made and filled again."""
    first = named(1, NAME, flags=MULTI | INTERRUPTED)
    with stubbed(first, done(1), named(2, NAME, NAME6), done(2)) as (ipset, far):
        assert ipset.names() == [NAME, NAME6]
        assert [sequence for _, _, sequence in far.asked()] == [1, 2]


def test_dump_of_sets_that_the_kernel_could_not_complete_is_an_error() -> None:
    with (
        stubbed(named(1, NAME), done(1, errno.ENOMEM)) as (ipset, _),
        pytest.raises(IpsetError, match="listing sets: Cannot allocate memory"),
    ):
        ipset.names()


def test_answer_to_an_earlier_question_is_passed_over() -> None:
    """A set that is not there is refused twice: by ipset, and by netlink."""
    twice = (refusal(1, errno.ENOENT), refusal(1, errno.ENOENT))
    with stubbed(*twice, refusal(2, 0)) as (ipset, _):
        with pytest.raises(IpsetError, match="No such file"):
            ipset.members(NAME)
        ipset.create(NAME, 4)


def test_kernel_that_does_not_answer_about_sets_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink_socket, "_TIMEOUT", 0.01)
    with stubbed() as (ipset, _):
        questions: list[Callable[[], object]] = [
            ipset.names,
            ipset.check,
            lambda: ipset.members(NAME),
            lambda: ipset.create(NAME, 4),
            lambda: ipset.add(NAME, members("10.0.0.0/8")),
            lambda: ipset.destroy(NAME),
        ]
        for question in questions:
            with pytest.raises(TemporaryError, match="the kernel does not answer"):
                question()


@pytest.mark.parametrize(
    ("number", "missing"), [(errno.EPROTONOSUPPORT, True), (errno.EMFILE, False), (errno.ENOBUFS, False)]
)
def test_lack_of_descriptors_is_no_lack_of_ipset(number: int, missing: bool) -> None:
    """Without ipset each address has a rule of its own, until the worker ends."""

    def opened(protocol: int) -> Netlink:
        raise TemporaryError("netlink socket") from OSError(number, "refused")

    with pytest.raises(IpsetMissing if missing else TemporaryError):
        Ipset(opened)


def test_names_fit_and_say_the_ip_version() -> None:
    for kind in FILL_ORDER:
        for version in (4, 6):
            assert re.fullmatch(rf"kilo-[a-z-]{{1,23}}-v{version}", name_of((kind, version)))
