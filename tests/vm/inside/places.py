"""The mesh of the tests: six hosts in two locations, one of them with two subnets, and a laptop outside.

```
          north                                  south
  berlin          potsdam                lisbon
  ada, bob        cem                    dan, eve, fay
  172.16.1.0/24   172.16.2.0/24          172.16.3.0/24
     router ────── router                   router
        └── internet ─┴────────────────────────┴───── home: laptop behind NAT
```

Without encapsulation a location ends where its subnet does, so then potsdam is one of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network

from kilo.model.workers import WORKERS
from tests.e2e.observe import leads
from tests.lab.dataplane import routes
from tests.lab.host import Host, wait_until
from tests.lab.mesh import LOCATION_LABEL, Member, Mesh, NodeSpec
from tests.lab.underlay import Site, connect

NORTH, SOUTH = "north", "south"
SITES = {"berlin": NORTH, "potsdam": NORTH, "lisbon": SOUTH}
VOLUNTEERS = ("ada", "dan")
ALONE, ALONE_AT = "cem", "potsdam"
"""Who has a location to itself where nothing is encapsulated, and its name."""
SPECS = [
    NodeSpec(name, site, location=SITES[site], annotations={"leader": "true"} if name in VOLUNTEERS else {})
    for name, site in (
        ("ada", "berlin"),
        ("bob", "berlin"),
        ("cem", "potsdam"),
        ("dan", "lisbon"),
        ("eve", "lisbon"),
        ("fay", "lisbon"),
    )
]
PODS = IPv4Network("10.42.0.0/16")
LAPTOP = "10.5.0.1"
START_SECONDS = 300
"""For one agent, on a busy machine; it takes some 7 s on one that does nothing else."""
SECONDS = 120
"""Patience with what takes a second or two on such a machine."""
COMPLAINTS = 12
AT_ONCE = max(1, (os.cpu_count() or 1) // 2)
"""Agents started at a time, each of six processes: a worker that is not up after 30 s is started again."""


def private_ip(mesh: Mesh, member: Member) -> str:
    """The address of a node on its site's LAN."""
    site = mesh.underlay.sites[member.spec.site]
    return site.private(site.hosts.index(member.host) + 2)


def location(mode: str, member: Member) -> str:
    """Where a host is."""
    return ALONE_AT if mode == "never" and member.name == ALONE else str(member.spec.location)


def leaders_of(mode: str) -> list[str]:
    """The hosts that are to lead, unless somebody changes that."""
    return sorted((*VOLUNTEERS, ALONE) if mode == "never" else VOLUNTEERS)


def join(a: Site, b: Site) -> None:
    """A cable between two sites' routers, by which their hosts reach one another's private addresses."""
    connect(a.router, f"to-{b.name}", b.router, f"to-{a.name}")
    for site, other, number in ((a, b, 1), (b, a, 2)):
        device = f"to-{other.name}"
        subnet = f"{other.private(0)}/24"
        site.router.ip(
            f"addr add 172.31.0.{number}/30 dev {device}",
            f"route add {subnet} via 172.31.0.{3 - number}",
        )
        for host in site.hosts:
            host.ip(f"route add {subnet} via {site.private(1)}")


def start_agents(members: Iterable[Member]) -> None:
    """Start agents, some at a time, and wait until their workers are ready."""
    waiting = list(members)
    while waiting:
        group, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        for member in group:
            member.agent.start()

        def ready(group: Sequence[Member] = group) -> bool:
            return all(m.agent.phases() == dict.fromkeys(WORKERS, "ready") for m in group)

        names = ", ".join(m.name for m in group)
        took = wait_until(ready, START_SECONDS, f"the agents of {names} are ready", pause=0.5)
        print(f"the agents of {names} were ready after {took:.1f} s")


def restart_agents(mesh: Mesh, mode: str, flags: Sequence[str]) -> None:
    """Kill every agent and start it with other flags, over what the killed one left in the kernel."""
    mesh.flags = list(flags)
    for member in mesh:
        mesh.cluster.label(member.name, LOCATION_LABEL, location(mode, member))
        kept = [flag for flag in member.agent.flags if flag.startswith(("--hostname", "--kubeconfig"))]
        if member.agent.process is not None:
            member.agent.kill_all()
        member.agent.flags = [*kept, *flags]
    start_agents(mesh)


def leaders(mesh: Mesh) -> list[str]:
    """The names of the hosts that lead."""
    return [member.name for member in mesh if leads(member)]


def device(mode: str, member: Member, other: Member, leader: Member) -> str:
    """By which device ``member``, whose location has that ``leader``, reaches the pods of ``other``."""
    target = other
    if location(mode, other) != location(mode, member):
        if member is leader:
            return "kilo0"
        target = leader
    return "tunl0" if encapsulated(mode, member, target) else "eth0"


def encapsulated(mode: str, member: Member, other: Member) -> bool:
    """Whether packets between these two hosts of one location are."""
    return mode == "always" or (mode == "crosssubnet" and other.spec.site != member.spec.site)


def settle(mesh: Mesh, mode: str, names: Sequence[str] = ()) -> None:
    """Wait until ``names`` lead, by default those that are to, and every host has the routes to every
    pod CIDR that ``mode`` asks for."""
    names = sorted(names or leaders_of(mode))
    leader = {location(mode, mesh[name]): mesh[name] for name in names}
    wanted = {
        (m.name, other.pod_cidr): device(mode, m, other, leader[location(mode, m)])
        for m in mesh
        for other in mesh
        if other is not m
    }

    def settled() -> bool:
        held = {m.name: routes(m.host) for m in mesh}
        return leaders(mesh) == names and all(
            held[name].get(cidr) == where for (name, cidr), where in wanted.items()
        )

    wait_until(settled, SECONDS, f"{names} lead, and all routes are as with {mode}", pause=0.2)


def complaints(mesh: Mesh) -> str:
    """The last that the agents warned of, as JSON lines."""
    lines = []
    for member in mesh:
        found = [line for line in member.agent.log() if line.get("level") not in ("debug", "info")]
        lines += [f"{member.name}: {json.dumps(line)}" for line in found[-COMPLAINTS:]]
    return "\n".join(lines)


class Laptop:
    """A peer of the mesh that is no node: behind NAT, with the kernel's WireGuard and nothing else."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.host = Host("laptop", mesh.logs)
        mesh.underlay.site("home", nat=True).add(self.host)
        self.host.run("sh", "-c", "umask 77; wg genkey > /etc/wg.key; wg pubkey < /etc/wg.key > /etc/wg.pub")
        self.host.ip(
            "link add wg0 type wireguard",
            f"addr add {LAPTOP}/32 dev wg0",
            "link set wg0 mtu 1380 up",
            *(f"route add {network} dev wg0" for network in ("10.42.0.0/16", "10.4.0.0/16")),
            *(f"route add 172.16.{n}.0/24 dev wg0" for n in (1, 2, 3)),
        )
        self.key = self.host.read("/etc/wg.pub").strip()
        mesh.cluster.create_peer(
            "laptop", publicKey=self.key, allowedIPs=[f"{LAPTOP}/32"], persistentKeepalive=5
        )

    def connect(self, mode: str) -> None:
        """Configure it as an operator would, from what the cluster says of its leaders."""
        settings = ["private-key", "/etc/wg.key"]
        for leader in (m for m in self._mesh if leads(m)):
            said = self._mesh.cluster.annotations(leader.name)
            behind = [m for m in self._mesh if location(mode, m) == location(mode, leader)]
            allowed = [m.pod_cidr for m in behind] + [f"{private_ip(self._mesh, m)}/32" for m in behind]
            allowed.append(said["wireguard-ip"].partition("/")[0] + "/32")
            settings += ["peer", said["key"], "endpoint", said["endpoint"], "persistent-keepalive", "5"]
            settings += ["allowed-ips", ",".join(allowed)]
        self.host.run("wg", "set", "wg0", *settings)

    def known(self) -> bool:
        """Whether every leader has had a handshake with it."""
        handshakes = self.host.run("wg", "show", "wg0", "latest-handshakes").splitlines()
        return len(handshakes) == len(leaders(self._mesh)) and all(
            line.split()[1] != "0" for line in handshakes
        )
