"""A mesh: an API server, hosts at sites, the real agent on each, and a pod on each to ping with.

It is a context manager, and whatever way it is left, nothing of it stays.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.agents import Agent, Program, default_program
from tests.lab.cluster import Cluster
from tests.lab.dataplane import CONFLIST, Snapshot, routes, snapshot
from tests.lab.host import Host, wait_until
from tests.lab.ping import Pinger, reachable
from tests.lab.pods import Pod, conflist_template
from tests.lab.underlay import Underlay

LOCATION_LABEL = "topology.kubernetes.io/region"
KUBECONFIG = "/etc/kubernetes/kubeconfig"


@dataclass(frozen=True)
class NodeSpec:
    """A node to be: its name, the site it is at, behind NAT or not, and what its Node object says.

    ``location`` is the label's value, by default the site. ``flags`` come after the mesh's own.
    """

    name: str
    site: str
    nat: bool = False
    location: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    flags: Sequence[str] = ()
    program: Program = field(default_factory=default_program)


class Member:
    """A node of the mesh: its host, its agent, its pod once attached, and the host as it was before."""

    def __init__(self, spec: NodeSpec, number: int, host: Host, agent: Agent) -> None:
        self.spec = spec
        self.name = spec.name
        self.pod_cidr = f"10.42.{number}.0/24"
        self.host = host
        self.agent = agent
        self.before: Snapshot = snapshot(host)
        self.pod: Pod | None = None
        self._socket: socket.socket | None = None

    @property
    def address(self) -> str:
        """The address of the pod."""
        assert self.pod, f"{self.name} has no pod yet"
        return self.pod.address

    def attach_pod(self, seconds: float = 30) -> None:
        """Attach the pod, as soon as the conflist has the pod CIDR."""
        conflist = self.host.path(CONFLIST)

        def written() -> bool:
            return conflist.exists() and self.pod_cidr in conflist.read_text()

        wait_until(written, seconds, f"the conflist of {self.name} has {self.pod_cidr}")
        self.pod = Pod(self.host, f"pod-{self.name}")

    def ping_socket(self) -> socket.socket:
        """A socket in the pod, for short pings; it is opened once."""
        if self._socket is None:
            assert self.pod, f"{self.name} has no pod yet"
            self._socket = self.pod.open_ping_socket()
        return self._socket

    def pinger(self, target: str, interval: float = 0.02) -> Pinger:
        """Start to ping ``target`` from the pod."""
        assert self.pod, f"{self.name} has no pod yet"
        return Pinger(self.pod.open_ping_socket(), target, interval)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Mesh:
    """``flags`` go to every agent; ``logs`` is a directory for all logs; ``progress`` hears what happens.

    ``standin`` off: a real API server, if one is installed.
    """

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        logs: Path,
        flags: Sequence[str] = ("--encapsulate=never",),
        progress: Callable[[str], None] = lambda text: None,
        standin: bool = True,
    ) -> None:
        self.members: dict[str, Member] = {}
        self.flags = list(flags)
        self.logs = logs
        self._specs = specs
        self._progress = progress
        self._standin = standin
        self._numbers = 0

    def __enter__(self) -> Mesh:
        self.underlay = Underlay(self.logs)
        try:
            self.cluster = Cluster(self.underlay.api, self.logs, standin=self._standin)
            self._progress("API server: " + self.cluster.description)
            for spec in self._specs:
                self.add(spec, start=False)
            self._progress("hosts: " + ", ".join(f"{m.name} in {m.spec.site}" for m in self))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self.members.values())

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def close(self) -> None:
        """End everything."""
        for member in self.members.values():
            member.close()
        if hasattr(self, "cluster"):
            self.cluster.close()
        self.underlay.close()

    def add(self, spec: NodeSpec, start: bool = True) -> Member:
        """Add a host, its Node object and its agent, which is started unless told not to."""
        self._numbers += 1
        host = Host(spec.name, self.logs)
        self.underlay.site(spec.site, spec.nat).add(host)
        host.write(KUBECONFIG, self.cluster.kubeconfig)
        flags = [f"--hostname={spec.name}", f"--kubeconfig={KUBECONFIG}", *self.flags, *spec.flags]
        member = Member(spec, self._numbers, host, Agent(host, spec.program, flags))
        self.members[spec.name] = member
        if spec.program.needs_interface:
            host.write(CONFLIST, conflist_template())
        self.create_node(member)
        if start:
            member.agent.start()
        return member

    def create_node(self, member: Member) -> None:
        """Create the Node object of ``member``, as a kubelet and the controllers would."""
        self.cluster.create_node(
            member.name,
            member.pod_cidr,
            labels={LOCATION_LABEL: member.spec.location or member.spec.site},
            annotations=member.spec.annotations,
        )

    def remove(self, name: str) -> None:
        """Take a node out as an operator would: end its agent, delete its object, switch it off."""
        member = self.members.pop(name)
        if member.agent.running:
            member.agent.terminate()
        self.cluster.delete_node(name)
        member.close()
        self.underlay.site(member.spec.site).remove(member.host)
        member.host.close()

    def start_agents(self) -> None:
        """Start all agents at once."""
        for member in self.members.values():
            member.agent.start()
        self._progress("agents started")

    def attach_pods(self, seconds: float = 30) -> None:
        """Attach a pod to every host that has none."""
        for member in self.members.values():
            if member.pod is None:
                member.attach_pod(seconds)
        self._progress("pods: " + ", ".join(f"{m.name} {m.address}" for m in self))

    def routed(self) -> bool:
        """Whether every host has a route to every pod CIDR.

        Pings before that slow the mesh down: WireGuard repeats a handshake that the other side did
        not answer, since it did not know this one yet, only after 5 s.
        """
        networks = {m.pod_cidr for m in self}
        return all(networks <= routes(m.host).keys() for m in self)

    def unanswered(self, seconds: float = 1.0) -> list[tuple[str, str]]:
        """The pairs of pods, from and to, between which no ping is answered within ``seconds``."""
        answered = self.pings(seconds)
        names = list(self.members)
        return [(a, b) for a in names for b in names if a != b and (a, b) not in answered]

    def pings(self, seconds: float = 1.0) -> dict[tuple[str, str], float]:
        """Ping every pod from every other: for each pair that answers the round trip in seconds."""
        sources = {m.name: m.ping_socket() for m in self}
        return reachable(sources, {m.name: m.address for m in self}, seconds)

    def converge(self, seconds: float = 30) -> float:
        """Start what has not been started, and wait until all pods reach one another; the seconds.

        Raises TimeoutError that names the pairs which do not.
        """
        start = time.monotonic()
        for member in self.members.values():
            if member.agent.process is None:
                member.agent.start()
        self._progress("agents started")
        self.attach_pods(seconds)
        wait_until(self.routed, seconds, "every host has a route to every pod CIDR")
        left = seconds - (time.monotonic() - start)
        if missing := self.unanswered(left):
            raise TimeoutError(f"after {seconds:g} s no answer to pings: {missing}")
        took = time.monotonic() - start
        self._progress("every pod reaches every other")
        return took
