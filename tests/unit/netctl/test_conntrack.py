"""Flows that began under other circumstances: which may go on as they did, and which are made to follow."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kilo.bus import Loop
from kilo.log import Logger
from kilo.model.plan import PlanItem
from kilo.netctl import conntrack
from kilo.netctl.conntrack import StaleFlows
from kilo.netctl.host import Host, Roles
from kilo.netctl.netlink.socket import Netlink
from tests.unit.netctl.capability import without_net_admin
from tests.unit.netctl.firewall.hosts import (
    HOST,
    HOST6,
    KNOWN,
    KNOWN6,
    PATIENT,
    POD,
    POD6,
    STRANGER,
    STRANGER6,
    Agent,
    Hosts,
    Namespace,
    entries,
    hosts,
    policy,
)

FROM_PODS = entries(masquerade_from="10.2.0.0/24 2001:db8:2::/64", no_masquerade_to="10.2.0.0/24")
FRIENDS = entries(no_masquerade_to="10.2.1.0/24 2001:db8:3::/64")
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


class Watched:
    """A host with what netctl has to say about flows; driven as the worker does it."""

    def __init__(
        self, host: Namespace, kind: str = "nftables", wireguard: str = "", log: Logger | None = None
    ) -> None:
        self.host = host
        self._log = log or Logger("netctl", "none")
        self.agent = Agent(host, kind="legacy" if kind == "legacy" else "nftables")
        self._wireguard = wireguard
        host.call(self._make)
        host.at_end.callback(lambda: host.call(self._close))

    def _make(self) -> None:
        self.loop, self._netlink, self._roles = Loop(), Netlink(), Roles()
        self._host = Host(self._netlink)
        self._find_devices()
        parts = (self.loop, self._netlink, self._host, self._roles, self.agent.firewall, self._log)
        self.flows = StaleFlows(*parts)
        self.flows.after_pass(())

    def _find_devices(self) -> None:
        self._host.load()
        self._roles.assign("private", self._host.named("private"))
        self._roles.assign("wireguard", self._host.named(self._wireguard))

    def _close(self) -> None:
        self.flows.close()
        self._netlink.close()
        self.loop.close()

    def after_pass(self, *moved: str) -> int:
        """What a pass ends with; how many entries were deleted."""
        return self.host.call(lambda: self.look(*moved))

    def look(self, *moved: str) -> int:
        before = self.flows.deleted
        self._find_devices()
        self.flows.after_pass(moved)
        while self.flows.looking:
            self.loop.run_for(0.01)
        return self.flows.deleted - before

    def plan(self, *items: PlanItem, without: tuple[PlanItem, ...] = ()) -> int:
        self.agent.plan(*items, without=without)
        return self.after_pass()

    def entries(self) -> set[str]:
        """The kernel's entries, each with its number, without what counts down."""
        text = self.host.run("conntrack", "-L", "-o", "id") + self.host.run(
            "conntrack", "-L", "-f", "ipv6", "-o", "id"
        )
        moving = re.compile(r"(?<= )\d+ |use=\d+ ")
        return {moving.sub("", line) for line in text.splitlines()}


@pytest.fixture
def wired() -> Iterator[Hosts]:
    with hosts() as made:
        yield made


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "_PAUSE", 0.05)


@pytest.fixture(params=[0, 5000], ids=["many entries", "few entries"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the kernel is asked for what may matter, or for all."""
    monkeypatch.setattr(conntrack, "_FEW", request.param)


@pytest.fixture(params=["legacy", "nftables"])
def watched(wired: Hosts, request: pytest.FixtureRequest) -> Watched:
    return Watched(wired.host, request.param)


class Stream:
    """UDP packets of one flow, from one port, without a pause that would let its entry end.

    With ``answers``, what hears them answers.
    """

    def __init__(self, wired: Hosts, destination: str, answers: bool = False) -> None:
        self._family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        self._source = POD6 if ":" in destination else POD
        self._destination, self._answers = destination, answers
        self._over = threading.Event()
        self.listening = wired.outside.call(self._listen)
        self._port = self.listening.getsockname()[1]
        sending = wired.pod.call(self._open)
        self._thread = threading.Thread(target=self._send, args=(sending,))

    def _listen(self) -> socket.socket:
        made = socket.socket(self._family, UDP)
        made.bind((self._destination, 0))
        made.settimeout(PATIENT)
        return made

    def _open(self) -> socket.socket:
        made = socket.socket(self._family, UDP)
        made.bind((self._source, 0))
        return made

    def _send(self, sending: socket.socket) -> None:
        with sending:
            while not self._over.wait(0.005):
                sending.sendto(b"x", (self._destination, self._port))

    def seen(self) -> str:
        """The source that packets arrive with now."""
        self.listening.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.listening.recv(16)
        self.listening.settimeout(PATIENT)
        _, sender = self.listening.recvfrom(16)
        if self._answers:
            self.listening.sendto(b"y", sender)
            _, sender = self.listening.recvfrom(16)
        return str(sender[0])

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self.listening.close()


@contextlib.contextmanager
def connection(wired: Hosts, destination: str) -> Iterator[Callable[[], bool]]:
    """A connection from the pod; the function tells whether it carries bytes both ways."""
    with (
        wired.outside.call(lambda: socket.create_server((destination, 0))) as server,
        wired.pod.call(lambda: socket.create_connection(server.getsockname(), PATIENT)) as near,
    ):
        far, _ = server.accept()
        far.settimeout(0.5)

        def works() -> bool:
            try:
                near.sendall(b"there")
                far.sendall(far.recv(16))
                return near.recv(16) == b"there"
            except OSError:
                return False

        with far:
            yield works


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("known", "host", "pod"), [(KNOWN, HOST, POD), (KNOWN6, HOST6, POD6)])
@pytest.mark.parametrize("answers", [False, True])
def test_what_is_known_from_now_on_is_masqueraded_no_more(
    wired: Hosts, watched: Watched, known: str, host: str, pod: str, answers: bool
) -> None:
    watched.plan(policy(), *FROM_PODS)
    stranger = STRANGER6 if ":" in known else STRANGER
    with Stream(wired, known, answers) as stream, Stream(wired, stranger, answers) as bystander:
        assert (stream.seen(), bystander.seen()) == (host, host)
        before = watched.entries()
        watched.agent.plan(*FRIENDS)
        assert stream.seen() == host, "the kernel keeps to what it decided"
        assert watched.after_pass() == 1
        assert stream.seen() == pod
        assert bystander.seen() == host
        gone = {entry for entry in before - watched.entries() if f"dst={known}" in entry}
        assert len(gone) == len(before - watched.entries()) == 1


def test_what_nobody_knows_any_more_is_masqueraded_from_now_on(wired: Hosts, watched: Watched) -> None:
    watched.plan(policy(), *FROM_PODS, *FRIENDS)
    with Stream(wired, KNOWN, answers=True) as stream:
        assert stream.seen() == POD
        assert watched.plan(without=tuple(FRIENDS)) == 1
        assert stream.seen() == HOST


def rules_of_others(watched: Watched) -> None:
    """With these the kernel keeps track of flows, and has decided about the translation of each."""
    program = "iptables-legacy" if watched.agent.kind == "nftables" else "iptables-nft"
    rule = ("-A", "POSTROUTING", "-d", "192.0.2.1", "-j", "MASQUERADE")
    watched.host.run(program, "-t", "nat", *rule)


def test_flows_that_were_there_before_the_first_rule(wired: Hosts, watched: Watched) -> None:
    rules_of_others(watched)
    with Stream(wired, STRANGER) as stream, Stream(wired, KNOWN) as other:
        assert (stream.seen(), other.seen()) == (POD, POD)
        assert watched.plan(policy(), *FROM_PODS, *FRIENDS) == 1
        assert (stream.seen(), other.seen()) == (HOST, POD)


def test_flows_that_began_while_somebody_had_flushed_the_rules(wired: Hosts, watched: Watched) -> None:
    rules_of_others(watched)
    watched.plan(policy(), *FROM_PODS)
    flush = {"legacy": ["iptables-legacy", "-t", "nat", "-F"], "nftables": ["nft", "delete table ip kilo"]}
    wired.host.run(*flush[watched.agent.kind])
    with Stream(wired, STRANGER) as stream:
        assert stream.seen() == POD
        watched.agent.resync()
        assert watched.after_pass() == 1
        assert stream.seen() == HOST


@pytest.mark.usefixtures("few")
def test_a_connection_that_was_answered_is_never_cut(wired: Hosts, watched: Watched) -> None:
    watched.plan(policy(), *FROM_PODS)
    with connection(wired, KNOWN) as works, connection(wired, STRANGER) as others:
        assert works() and others()
        before = watched.entries()
        assert watched.plan(*FRIENDS) == 0
        assert watched.plan(without=tuple(FROM_PODS)) == 0
        assert watched.plan(*FROM_PODS) == 0
        assert works() and others()
        assert watched.entries() == before


SCTP = "-p sctp --orig-vtag 1 --reply-vtag 2 --state ESTABLISHED"
DCCP = "-p dccp --role client --state OPEN"


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("protocol", [SCTP, DCCP], ids=["sctp", "dccp"])
def test_nor_is_an_association_of_another_protocol(wired: Hosts, watched: Watched, protocol: str) -> None:
    """Whatever the number of entries."""
    watched.plan(policy(), *FROM_PODS)
    translated = ("-s", POD, "-r", KNOWN, "-q", HOST, "--timeout", "100")
    ports = ("--sport", "1", "--dport", "2", "--reply-port-src", "2", "--reply-port-dst", "1")
    insert = ("conntrack", "-I", *protocol.split(), *ports, *translated)
    wired.host.run(*insert, "-d", KNOWN, "-u", "SEEN_REPLY,ASSURED")
    before = watched.entries()
    assert any("10.2.1.5" in entry for entry in before)
    assert watched.plan(*FRIENDS) == 0
    assert watched.entries() == before


def test_translations_of_others_are_left_alone(wired: Hosts, watched: Watched) -> None:
    """A rule of the host's own, for traffic that ours do not look at; and a service's."""
    nat = (watched.agent.iptables[0], "-t", "nat")
    wired.host.run(*nat, "-A", "POSTROUTING", "-s", "10.9.0.0/24", "-j", "MASQUERADE")
    wired.host.run(
        *nat, "-A", "PREROUTING", "-d", "10.96.0.1", "-p", "udp", "-j", "DNAT", "--to-destination", KNOWN
    )
    wired.pod.ip("addr add 10.9.0.2/32 dev lo")
    wired.host.ip(f"route add 10.9.0.2 via {POD}")
    watched.plan(policy(), *FROM_PODS)

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_INET, UDP)
        made.bind((KNOWN, 7777))
        made.settimeout(PATIENT)
        return made

    def send() -> None:
        for source, destination in (("10.9.0.2", KNOWN), (POD, "10.96.0.1")):
            with socket.socket(socket.AF_INET, UDP) as made:
                made.settimeout(PATIENT)
                made.bind((source, 0))
                made.sendto(b"x", (destination, 7777))
                made.recv(16)

    with wired.outside.call(listen) as listening:
        sending = wired.pod.start(send)
        heard = set()
        for _ in range(2):
            _, sender = listening.recvfrom(16)
            heard.add(sender[0])
            listening.sendto(b"y", sender)
        sending.result()
    assert heard == {HOST}
    before = watched.entries()
    assert sum("dport=7777" in entry for entry in before) == 2
    assert watched.plan(*FRIENDS) == 0
    assert watched.entries() == before


@pytest.mark.usefixtures("few")
def test_what_has_an_address_that_wireguard_had(wired: Hosts) -> None:
    """Rules of the host's own bind flows to it, in ways that the kernel does not end with the address."""
    host = wired.host
    host.ip("link add kilo0 type veth peer name far\naddr add 10.4.0.1/16 dev kilo0\nlink set kilo0 up")
    host.run(
        *("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-d", STRANGER),
        *("-j", "SNAT", "--to-source", "10.4.0.1"),
    )
    wired.outside.ip(f"route add 10.4.0.0/16 via {HOST}")
    watched = Watched(host, wireguard="kilo0")
    with Stream(wired, STRANGER) as stream, Stream(wired, KNOWN) as bystander:
        assert (stream.seen(), bystander.seen()) == ("10.4.0.1", POD)
        before = watched.entries()
        host.ip("addr add 10.4.0.1/32 dev lo\naddr del 10.4.0.1/16 dev kilo0")
        assert watched.after_pass() == 0, "the host still has it"
        host.ip("addr add 10.4.0.1/16 dev kilo0")
        assert watched.after_pass() == 0
        host.ip("addr del 10.4.0.1/32 dev lo\naddr del 10.4.0.1/16 dev kilo0")
        host.run("iptables-nft", "-t", "nat", "-F")
        assert watched.after_pass() == 1
        assert (stream.seen(), bystander.seen()) == (POD, POD)
        assert len(before & watched.entries()) == len(before) - 1


def test_a_device_that_vanishes_for_a_moment_has_lost_nothing(wired: Hosts) -> None:
    host = wired.host
    make = "link add kilo0 type veth peer name far\naddr add 10.4.0.1/16 dev kilo0\nlink set kilo0 up"
    host.ip(make)
    watched = Watched(host, wireguard="kilo0")
    ports = ("--sport", "1", "--dport", "2", "-t", "100")
    host.run("conntrack", "-I", "-p", "udp", "-s", "10.4.0.1", "-d", STRANGER, *ports)
    before = watched.entries()
    host.ip("link delete kilo0")
    assert watched.after_pass() == 0
    host.ip(make)
    assert watched.after_pass() == 0
    assert watched.entries() == before
    host.ip("addr del 10.4.0.1/16 dev kilo0")
    assert watched.after_pass() == 1


def test_what_the_host_sends_itself_is_left_alone(wired: Hosts, watched: Watched) -> None:
    """A rule may look at it, and what it is translated to is what it had."""
    rules_of_others(watched)
    ports = ("--sport", "1", "--dport", "2", "-t", "100")
    wired.host.run("conntrack", "-I", "-p", "udp", "-s", HOST, "-d", STRANGER, *ports)
    before = watched.entries()
    assert watched.plan(policy(), *FROM_PODS, *entries(masquerade_to="203.0.113.0/24")) == 0
    assert watched.entries() == before


def test_at_rest_nobody_is_asked(wired: Hosts, watched: Watched) -> None:
    watched.plan(policy(), *FROM_PODS)
    with Stream(wired, STRANGER) as stream:
        stream.seen()
        for _ in range(3):
            watched.agent.resync()
            wired.host.call(lambda: watched.flows.after_pass(()))
            assert not watched.flows.looking
        second = Watched(wired.host, watched.agent.kind)
        second.agent.plan(policy(), *FROM_PODS)
        wired.host.call(lambda: second.flows.after_pass(()))
        assert not second.flows.looking, "a start that finds everything as it should be"


def test_looks_are_not_closer_together_than_they_may_be(
    wired: Hosts, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "_PAUSE", 0.5)
    watched.plan(policy(), *FROM_PODS)
    with Stream(wired, KNOWN) as stream:
        stream.seen()
        began = time.monotonic()
        watched.plan(*FRIENDS)
        watched.plan(without=tuple(FRIENDS))
        assert time.monotonic() - began > 0.5
        assert stream.seen() == HOST


def test_what_the_kernel_refuses_is_told_once_and_costs_nothing_else(wired: Hosts) -> None:
    read, write = os.pipe()
    watched = Watched(wired.host, log=Logger("netctl", "info", write))
    with Stream(wired, KNOWN) as stream:
        stream.seen()
        for items in ([policy(), *FROM_PODS], FRIENDS, entries(no_masquerade_to="10.2.7.0/24")):
            watched.agent.plan(*items)
            assert wired.host.call(lambda: without_net_admin(watched.look)) == 0
        os.close(write)
        with open(read) as lines:
            assert lines.read().count("flows may keep to their old way") == 1


class Routers:
    """A client and a server, and two routers between them; the first is looked at, and has a pod.

      ┌── private  first  kilo0 ──┐
    client                      server
      └── private  second kilo0 ──┘
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        names = ("client", "server", "first", "second", "pod")
        made = {name: Namespace() for name in names}
        for namespace in made.values():
            stack.callback(namespace.close)
            namespace.sysctl("net/ipv4/conf/all/rp_filter", "0")
            namespace.sysctl("net/ipv4/conf/default/rp_filter", "0")
            namespace.ip("link set lo up")
        self.client, self.server, self.first, self.second, self.pod = (made[name] for name in names)
        for number, router in enumerate((self.first, self.second), 1):
            router.sysctl("net/ipv4/ip_forward", "1")
            for end, name, network in ((self.client, "private", "10.1"), (self.server, "kilo0", "10.3")):
                router.ip(f"link add {name} type veth peer name to{number} netns {end.name}")
                router.ip(f"addr add {network}.{number}.1/24 dev {name}\nlink set {name} up")
                end.ip(f"addr add {network}.{number}.2/24 dev to{number}\nlink set to{number} up")
            router.ip(f"route add 10.2.1.0/24 via 10.1.{number}.2\nroute add 10.2.2.0/24 via 10.3.{number}.2")
            drop = ("-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
            router.run("iptables-nft", *drop)
        self.client.ip("addr add 10.2.1.5/32 dev lo")
        self.server.ip("addr add 10.2.2.5/32 dev lo")
        self.first.ip(f"link add pod type veth peer name eth0 netns {self.pod.name}")
        self.first.ip("addr add 10.2.3.1/24 dev pod\nlink set pod up")
        self.pod.ip("addr add 10.2.3.5/24 dev eth0\nlink set eth0 up\nroute add default via 10.2.3.1")
        self.server.ip("route add 10.2.3.0/24 via 10.3.1.1")

    def lead(self, number: int) -> None:
        """Both ends go by this router."""
        self.client.ip(f"route replace 10.2.2.0/24 via 10.1.{number}.1 src 10.2.1.5")
        self.server.ip(f"route replace 10.2.1.0/24 via 10.3.{number}.1 src 10.2.2.5")


class Transfer:
    """A connection to the server that carries as much as it is told to."""

    def __init__(self, stack: contextlib.ExitStack, client: Namespace, server: Namespace) -> None:
        listening = stack.enter_context(server.call(lambda: socket.create_server(("10.2.2.5", 0))))
        address = listening.getsockname()
        self._near = stack.enter_context(client.call(lambda: socket.create_connection(address, PATIENT)))
        self._far = stack.enter_context(listening.accept()[0])
        self._far.settimeout(PATIENT)

    def carries(self, size: int, patience: float = PATIENT) -> bool:
        self._near.settimeout(patience)
        self._far.settimeout(patience)
        with ThreadPoolExecutor(1) as pool:
            received = pool.submit(self._receive, size)
            with contextlib.suppress(TimeoutError):
                self._near.sendall(bytes(size))
            return received.result() == size

    def _receive(self, size: int) -> int:
        received = 0
        with contextlib.suppress(TimeoutError):
            while received < size:
                received += len(self._far.recv(1 << 16))
        return received


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("told", [True, False])
def test_connections_survive_that_the_leader_changes_and_changes_back(told: bool) -> None:
    """Without being told the kernel takes what comes for invalid, since it has missed what went elsewhere."""
    with contextlib.ExitStack() as stack:
        routers = Routers(stack)
        watched = Watched(routers.first, wireguard="kilo0")
        routers.lead(1)
        through = Transfer(stack, routers.client, routers.server)
        own = Transfer(stack, routers.first, routers.server)
        of_pod = Transfer(stack, routers.pod, routers.server)
        assert through.carries(100_000) and own.carries(100_000) and of_pod.carries(100_000)
        before = watched.entries()
        assert len(before) == 3
        routers.lead(2)
        assert through.carries(10_000_000)
        if not told:
            routers.lead(1)
            assert not through.carries(1_000_000, 1.0)
            return
        assert watched.after_pass("10.2.2.0/24") == 1
        assert watched.after_pass("10.2.7.0/24") == 0
        assert before - watched.entries() == {entry for entry in before if "src=10.2.1.5" in entry}
        routers.lead(1)
        assert through.carries(1_000_000)
        assert own.carries(100_000) and of_pod.carries(100_000)


@pytest.mark.usefixtures("few")
def test_what_has_an_ipv6_address_that_wireguard_had(wired: Hosts) -> None:
    host = wired.host
    host.ip("link add kilo0 type veth peer name far\naddr add fd00:4::1/64 dev kilo0\nlink set kilo0 up")
    watched = Watched(host, wireguard="kilo0")
    for source in ("fd00:4::1", "fd00:4::2"):
        ports = ("--sport", "1", "--dport", "2", "-t", "100")
        host.run("conntrack", "-I", "-p", "udp", "-s", source, "-d", STRANGER6, *ports)
    host.ip("addr del fd00:4::1/64 dev kilo0")
    assert watched.after_pass() == 1
    assert [entry.split()[1] for entry in watched.entries()] == ["src=fd00:4::2"]
