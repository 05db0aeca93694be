"""A host whose flows are looked at, and traffic that makes some: what the tests of flows share."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator

from kilo.bus import Loop
from kilo.log import Logger
from kilo.model.plan import PlanItem
from kilo.netctl.conntrack import StaleFlows
from kilo.netctl.host import Host, Roles
from kilo.netctl.netlink.socket import Netlink
from tests.integration.netctl.firewall.hosts import PATIENT, POD, POD6, Agent, Hosts, Namespace, entries

FROM_PODS = entries(masquerade_from="10.2.0.0/24 2001:db8:2::/64", no_masquerade_to="10.2.0.0/24")
FRIENDS = entries(no_masquerade_to="10.2.1.0/24 2001:db8:3::/64")
UDP = socket.SOCK_DGRAM


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
        """The kernel's entries, each with its number, without what moves."""
        text = self.host.run("conntrack", "-L", "-o", "id") + self.host.run(
            "conntrack", "-L", "-f", "ipv6", "-o", "id"
        )
        moving = re.compile(r"(?<= )\d+ |use=\d+ |\[ASSURED\] ")
        return {moving.sub("", line) for line in text.splitlines()}


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


def rules_of_others(watched: Watched) -> None:
    """With these the kernel keeps track of flows, and has decided about the translation of each."""
    program = "iptables-legacy" if watched.agent.kind == "nftables" else "iptables-nft"
    rule = ("-A", "POSTROUTING", "-d", "192.0.2.1", "-j", "MASQUERADE")
    watched.host.run(program, "-t", "nat", *rule)
