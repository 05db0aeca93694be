"""What can go wrong on a host of the lab, around it, and in the cluster. Used by tests.lab.chaos.

A fault strikes, and gives the question whether all is as before. Those of the *data* plane break
the kernel's objects; those of the *control* plane break the agent, its disk or the way to the API;
those of the *cluster* are changes that its users may make, good and bad.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from kilo.model.workers import WORKERS
from tests.lab.dataplane import configuration, peer_for, routes, wireguard_peers
from tests.lab.mesh import Member, Mesh, NodeSpec
from tests.lab.underlay import API_ADDRESS

DATA, CONTROL, CLUSTER = "data plane", "control plane", "cluster"
Whole = Callable[[], bool]
RUN_DIR = "/run/kilo"


class World:
    """The mesh, the dice, and what runs for a while beside it."""

    def __init__(self, mesh: Mesh, dice: random.Random) -> None:
        self.mesh = mesh
        self.dice = dice
        self._numbers = itertools.count()
        self._cleared: list[Callable[[], object]] = []

    def choose(self, firewall: str = "") -> Member:
        """A host to strike; with ``firewall``, one that has this."""
        members = [m for m in self.mesh if firewall in ("", firewall_of(m))]
        found: Member = self.dice.choice(members)
        return found

    def number(self) -> int:
        """One that was not given before."""
        return next(self._numbers)

    def healthy(self) -> bool:
        """Whether every worker of every agent is ready."""
        return all(m.agent.running and m.agent.phases() == dict.fromkeys(WORKERS, "ready") for m in self.mesh)

    def state(self, member: Member) -> dict[str, list[str]]:
        """What is in the kernel of a host, in an order that means nothing, without what traffic changes."""
        found = configuration(member.host)
        for part in ("links", "routes"):  # the kernel gives a TUN device a random link-local address, or none
            found[part] = [re.sub(r" ?fe80:\S+", "", line) for line in found[part] if "fe80::/64" not in line]
        peers = wireguard_peers(member.host)
        found["wireguard"] = sorted(f"{key} {sorted(peer.allowed_ips)}" for key, peer in peers.items())
        return found

    def later(self, undo: Callable[[], object]) -> Callable[[], None]:
        """``undo``, to be called by the fault, or else at the end of everything."""
        self._cleared.append(undo)

        def done() -> None:
            if undo in self._cleared:
                self._cleared.remove(undo)
                undo()

        return done

    def close(self) -> None:
        """Take back what faults have left."""
        for undo in reversed(self._cleared):
            with contextlib.suppress(Exception):
                undo()
        self._cleared.clear()


def firewall_of(member: Member) -> str:
    """legacy where a flag says so, else nftables."""
    return "legacy" if "--firewall=legacy" in member.spec.flags else "nftables"


@dataclass(frozen=True)
class Fault:
    """``strike`` makes it happen and gives the question; ``limit``: seconds until all must be as before.

    ``costs``: pings may be lost meanwhile. ``firewall``: only hosts with this one can be struck.
    """

    name: str
    plane: str
    limit: float
    strike: Callable[[World, Member], Whole]
    costs: bool = False
    firewall: str = ""


def _as_before(member: Member, *shown: str) -> Whole:
    """Whether shell commands print what they print now."""
    script = "; ".join(shown)

    def show() -> str:
        return member.host.run("sh", "-c", script, check=False)

    before = show()
    return lambda: show() == before


ROUTES = "ip route show proto 171"
ADDRESS = "ip -4 -br addr show kilo0"
MTU = "cat /sys/class/net/kilo0/mtu"
PEERS = "wg show kilo0 allowed-ips | sed 's/[^\\t ]*=//' | tr '\\t ' '\\n\\n' | sort"
NFTABLES = "nft list ruleset | sed 's/packets.*bytes [0-9]*//' | tr -d '\\n\\t ,' | fold -w1 | sort | uniq -c"


LEGACY = "iptables-legacy-save | grep -i kilo; ip6tables-legacy-save | grep -i kilo"
SETS = "ipset save | sort"
LEGACY_LIMIT = 12.0
"""Seconds: nothing tells of changes to legacy tables, so they wait for the next resync, here after 10 s."""
_FLUSH_LEGACY = "for table in nat filter mangle; do iptables-legacy -t $table -F; done"
_EMPTY_A_SET = "nft flush set ip kilo no-masquerade-to"


def _shell(member: Member, command: str, *shown: str) -> Whole:
    whole = _as_before(member, *shown)
    member.host.run("sh", "-c", command)
    return whole


# The data plane.


def _route(world: World, member: Member) -> Whole:
    others = [m.pod_cidr for m in world.mesh if m is not member]
    return _shell(member, f"ip route del {world.dice.choice(others)}", ROUTES)


def _route_changed(world: World, member: Member) -> Whole:
    other = world.dice.choice([m for m in world.mesh if m is not member])
    return _shell(member, f"ip route change {other.pod_cidr} dev lo proto 171", ROUTES)


def _wireguard_go(world: World, member: Member) -> Whole:
    whole = _as_before(member, ROUTES, ADDRESS, MTU, PEERS)
    for process in member.agent.wireguard_go():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.02)
    return whole


def _peer(world: World, member: Member) -> Whole:
    whole = _as_before(member, PEERS)
    key = world.dice.choice(sorted(wireguard_peers(member.host)))
    member.host.run("wg", "set", "kilo0", "peer", key, "remove")
    return whole


def _allowed_ips(world: World, member: Member) -> Whole:
    whole = _as_before(member, PEERS)
    key = world.dice.choice(sorted(wireguard_peers(member.host)))
    member.host.run("wg", "set", "kilo0", "peer", key, "allowed-ips", "10.99.0.0/24")
    return whole


# The control plane.


def _killed(worker: str) -> Callable[[World, Member], Whole]:
    def strike(world: World, member: Member) -> Whole:
        before = member.agent.kill_worker(worker)
        return lambda: (
            member.agent.worker(worker) not in (0, before) and (member.agent.phase(worker) == "ready")
        )

    return strike


def _stopped(worker: str) -> Callable[[World, Member], Whole]:
    """It hangs, until the parent ends it."""

    def strike(world: World, member: Member) -> Whole:
        before = member.agent.signal_worker(worker, signal.SIGSTOP)
        return lambda: (
            member.agent.worker(worker) not in (0, before) and (member.agent.phase(worker) == "ready")
        )

    return strike


def _parent_killed(world: World, member: Member) -> Whole:
    assert member.agent.process
    member.agent.process.kill()
    while member.agent.processes():
        time.sleep(0.05)
    member.agent.start()
    return world.healthy


def _parent_stopped(world: World, member: Member) -> Whole:
    """It stands still for 5 s, and is then as before, with the same workers."""
    before = [member.agent.worker(name) for name in WORKERS]
    go_on = world.later(lambda: os.kill(member.agent.pid, signal.SIGCONT))
    os.kill(member.agent.pid, signal.SIGSTOP)
    time.sleep(5)
    go_on()
    return lambda: world.healthy() and [member.agent.worker(name) for name in WORKERS] == before


def _all_killed(world: World, member: Member) -> Whole:
    member.agent.kill_all()
    member.agent.start()
    return world.healthy


def _api_restarted(world: World, member: Member) -> Whole:
    world.mesh.cluster.stop()
    world.mesh.cluster.start()
    return _news_arrives(world)


def _api_frozen(world: World, member: Member) -> Whole:
    thaw = world.later(world.mesh.cluster.thaw)
    world.mesh.cluster.freeze()
    time.sleep(8)
    thaw()
    return _news_arrives(world)


def _api_out_of_reach(world: World, member: Member) -> Whole:
    internet = world.mesh.underlay.internet
    restore = world.later(lambda: internet.ip(f"route del blackhole {API_ADDRESS}/32"))
    internet.ip(f"route add blackhole {API_ADDRESS}/32")
    time.sleep(8)
    restore()
    return _news_arrives(world)


def _api(seconds: float, *calls: tuple[Any, ...]) -> Callable[[World, Member], Whole]:
    """The API server misbehaves for a while, with every connection cut at its beginning."""

    def strike(world: World, member: Member) -> Whole:
        heal = world.later(lambda: world.mesh.cluster.fault(("heal",)))
        world.mesh.cluster.fault(*calls, ("drop",))
        time.sleep(seconds)
        heal()
        return _news_arrives(world)

    return strike


def _api_silent(world: World, member: Member) -> Whole:
    """Watches are sent nothing, and are not cut; what happened meanwhile is told afterwards."""
    heal = world.later(lambda: world.mesh.cluster.fault(("heal",)))
    world.mesh.cluster.fault(("silence",))
    arrives = _news_arrives(world)
    time.sleep(5)
    heal()
    return arrives


def _connections_cut(world: World, member: Member) -> Whole:
    for _ in range(5):
        world.mesh.cluster.fault(("drop",))
        time.sleep(0.3)
    return _news_arrives(world)


def _news_arrives(world: World) -> Whole:
    """A Peer that is made now is known everywhere, and is forgotten again."""
    number = world.number()
    network, name = f"10.5.{number // 250}.{number % 250 + 1}/32", f"news-{number}"
    world.mesh.cluster.create_peer(name, publicKey=_key(number), allowedIPs=[network], persistentKeepalive=0)
    known = threading.Event()

    def whole() -> bool:
        if not known.is_set():
            if all(peer_for(m.host, network) for m in world.mesh):
                known.set()
                world.mesh.cluster.delete_peer(name)
            return False
        return not any(peer_for(m.host, network) or network in routes(m.host) for m in world.mesh)

    return whole


def _key(number: int) -> str:
    """A public key that nobody has, in base64."""
    text = f"chaos {number:026d}".encode()
    return base64.b64encode(text).decode()


def _bus_garbage(world: World, member: Member) -> Whole:
    """Somebody speaks to the workers' sockets what is not the bus."""
    context = zmq.Context()
    try:
        for worker in WORKERS:
            speaker = context.socket(zmq.XSUB)
            speaker.set(zmq.LINGER, 200)
            speaker.connect(f"ipc:///proc/{member.host.pid}/root{RUN_DIR}/{worker}/bus.sock")
            for _ in range(50):
                speaker.send(world.dice.randbytes(world.dice.randrange(1, 900)))
            speaker.close()
    finally:
        context.term()
    return world.healthy


def _disk_full(folder: str, file: str, worker: str, has_copy: bool) -> Callable[[World, Member], Whole]:
    """A directory takes no more, with or without what was in it, and the worker that writes there dies."""

    def strike(world: World, member: Member) -> Whole:
        whole = _as_before(member, f"cat {folder}/{file}", PEERS)
        fill = f"head -c 100000 /dev/zero > {folder}/filler || true"
        steps = [
            "rm -rf /run/saved && mkdir /run/saved",
            f"cp -a {folder}/. /run/saved" if has_copy else ":",
            f"mount -t tmpfs -o size=16k,mode=755 none {folder}",
            f"cp -a /run/saved/. {folder}; ({fill}) 2> /dev/null",
        ]
        member.host.run("sh", "-ec", "\n".join(steps))
        undo = world.later(lambda: member.host.run("umount", folder))
        member.agent.kill_worker(worker)
        time.sleep(3)
        undo()
        return lambda: whole() and world.healthy()

    return strike


# The cluster.


def _node_comes_and_goes(world: World, member: Member) -> Whole:
    name = f"guest{world.number()}"
    guest = world.mesh.add(NodeSpec(name, "tokyo"))
    leave = world.later(lambda: world.mesh.remove(name))
    others = [m for m in world.mesh if m is not guest]
    end = time.monotonic() + 30
    while not all(peer_for(m.host, guest.pod_cidr) for m in others) and time.monotonic() < end:
        time.sleep(0.1)
    leave()
    cidr = guest.pod_cidr
    return lambda: not any(peer_for(m.host, cidr) or cidr in routes(m.host) for m in others)


def _bad_peers(world: World, member: Member) -> Whole:
    """Peers that are wrong, or claim what is others', beside one that is right."""
    number = world.number()
    other = next(m for m in world.mesh if m is not member)
    bad: dict[str, dict[str, Any]] = {
        f"thief-{number}": {"allowedIPs": [f"{other.address}/32", f"{API_ADDRESS}/32"]},
        f"nowhere-{number}": {
            "allowedIPs": ["10.6.0.1/32"],
            "endpoint": {"dnsOrIP": {"dns": "name.that.is.invalid"}, "port": 51820},
        },
        f"wide-{number}": {"allowedIPs": ["0.0.0.0/0"]},
    }
    for n, (name, spec) in enumerate(bad.items()):
        world.mesh.cluster.create_peer(
            name, publicKey=_key(1000 + 10 * number + n), persistentKeepalive=0, **spec
        )
    news = _news_arrives(world)
    end = time.monotonic() + 30
    while not news() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(1)
    for name in bad:
        world.mesh.cluster.delete_peer(name)
    return lambda: not any("10.6.0.1/32" in routes(m.host) for m in world.mesh)


def _garbage_annotations(world: World, member: Member) -> Whole:
    bad = {"endpoint": "nowhere", "internal-ip": "x/y", "wireguard-ip": "10.4.0.0.1/16"}
    others = [m for m in world.mesh if m is not member]
    world.mesh.cluster.annotate(member.name, bad)
    return lambda: (
        all(peer_for(m.host, member.pod_cidr) for m in others)
        and (world.mesh.cluster.annotations(member.name)["endpoint"] != "nowhere")
    )


def _data(name: str, command: str, *shown: str, limit: float = 1.0, firewall: str = "") -> Fault:
    def strike(world: World, member: Member) -> Whole:
        return _shell(member, command, *shown)

    return Fault(name, DATA, limit, strike, costs=True, firewall=firewall)


FAULTS = (
    Fault("a route is deleted", DATA, 1.0, _route, costs=True),
    _data("all routes are deleted", "ip route flush proto 171", ROUTES),
    _data("the address is deleted", "ip addr flush dev kilo0", ADDRESS, ROUTES),
    _data("the interface goes down", "ip link set kilo0 down", ADDRESS, ROUTES),
    _data("the MTU is changed", "ip link set kilo0 mtu 1300", MTU),
    _data("the interface is deleted", "ip link del kilo0", ADDRESS, ROUTES, PEERS),
    Fault("wireguard-go is killed", DATA, 1.0, _wireguard_go, costs=True),
    Fault("a WireGuard peer is removed", DATA, 1.0, _peer, costs=True),
    Fault("allowed IPs are changed", DATA, 1.0, _allowed_ips, costs=True),
    Fault("a route is changed", DATA, 1.0, _route_changed, costs=True),
    _data("the nftables table is deleted", "nft delete table ip kilo", NFTABLES, firewall="nftables"),
    _data("the ruleset is flushed", "nft flush ruleset", NFTABLES, firewall="nftables"),
    _data("a set is emptied (nftables)", _EMPTY_A_SET, NFTABLES, firewall="nftables"),
    _data("legacy tables are flushed", _FLUSH_LEGACY, LEGACY, limit=LEGACY_LIMIT, firewall="legacy"),
    _data("a set is emptied (ipset)", "ipset flush", SETS, limit=LEGACY_LIMIT, firewall="legacy"),
    *[Fault(f"{w} is killed", CONTROL, 10.0, _killed(w)) for w in WORKERS],
    *[Fault(f"{w} hangs", CONTROL, 40.0, _stopped(w)) for w in WORKERS],
    Fault("the parent is killed, and kg started again", CONTROL, 15.0, _parent_killed),
    Fault("the parent hangs for 5 s", CONTROL, 5.0, _parent_stopped),
    Fault("all of kg is killed, and started again", CONTROL, 15.0, _all_killed),
    Fault("the API server restarts", CONTROL, 45.0, _api_restarted),
    Fault("the API server hangs for 8 s", CONTROL, 60.0, _api_frozen),
    Fault("the way to the API is cut for 8 s", CONTROL, 60.0, _api_out_of_reach),
    Fault("connections to the API are cut", CONTROL, 45.0, _connections_cut),
    Fault("the API answers 2 s late", CONTROL, 45.0, _api(5, ("delay", 2.0))),
    Fault("the API's answers are truncated", CONTROL, 45.0, _api(4, ("truncate", 30), ("compact",))),
    Fault("the API answers 429", CONTROL, 45.0, _api(4, ("fail", 429, None, "", 1))),
    Fault("the API answers 500", CONTROL, 45.0, _api(4, ("fail", 500, None))),
    Fault("watches are too old: 410", CONTROL, 45.0, _api(1, ("compact",))),
    Fault("watches are too old: 410 as status", CONTROL, 45.0, _api(1, ("compact", True))),
    Fault("watches fall silent for 5 s", CONTROL, 45.0, _api_silent),
    Fault("garbage on the bus", CONTROL, 5.0, _bus_garbage),
    Fault(
        "the disk of the CNI configuration is full, its file gone",
        CONTROL,
        40.0,
        _disk_full("/etc/cni/net.d", "10-kilo.conflist", "cni", has_copy=False),
    ),
    Fault(
        "the disk of the key is full",
        CONTROL,
        40.0,
        _disk_full("/var/lib/kilo", "key", "netctl", has_copy=True),
    ),
    Fault("a node comes and goes", CLUSTER, 20.0, _node_comes_and_goes),
    Fault("Peers that are wrong come and go", CLUSTER, 20.0, _bad_peers),
    Fault("garbage in a node's annotations", CLUSTER, 20.0, _garbage_annotations, costs=True),
)
