"""Connections when another node of the location comes to lead."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.netctl.conntrack.watched import Watched
from tests.integration.netctl.firewall.hosts import PATIENT, Namespace


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
