"""Four hosts in three locations: who leads, who joins, who leaves, and who connects from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.observe import all_know, allowed_by_key, leads, no_ping_lost, peer_for
from tests.lab.dataplane import routes
from tests.lab.host import Host, wait_until
from tests.lab.mesh import LOCATION_LABEL, Member, Mesh, NodeSpec
from tests.lab.ping import open_socket, reachable
from tests.lab.underlay import API_ADDRESS

SECONDS = 20
"""Patience with what should take about a second."""
OUTSIDER_ADDRESS = "10.5.0.1"
GARBAGE = {
    "allowed-location-ips": "300.1.2.3/8,,x",
    "discovered-endpoints": "{not json",
    "endpoint": "999.999.999.999:99999",
    "force-endpoint": "::::",
    "force-internal-ip": "10.0.0.0/99",
    "granularity": "\u2603",
    "internal-ip": "nowhere",
    "key": "not a key",
    "last-seen": "yesterday",
    "leader": "\\x00",
    "location": "a b/c\nd",
    "persistent-keepalive": "-1e9",
    "wireguard-ip": "10.4.0.0.0/16",
}


@pytest.fixture(scope="module")
def mesh(logs: Path) -> Iterator[Mesh]:
    """ada and bob share a location and its LAN; cleo and dan have locations of their own."""
    specs = [
        NodeSpec("ada", "berlin"),
        NodeSpec("bob", "berlin"),
        NodeSpec("cleo", "lisbon"),
        NodeSpec("dan", "oslo"),
    ]
    flags = ["--encapsulate=never", "--mesh-granularity=location"]
    with Mesh(specs, logs, flags, print) as made:
        made.converge(60)
        yield made


def test_every_pod_reaches_every_other(mesh: Mesh) -> None:
    assert mesh.unanswered() == []


def test_one_host_of_a_location_leads(mesh: Mesh) -> None:
    assert [m.name for m in mesh if leads(m)] in (["ada", "cleo", "dan"], ["bob", "cleo", "dan"])
    leader, other = sorted((mesh["ada"], mesh["bob"]), key=leads, reverse=True)
    assert len(allowed_by_key(leader.host)) == 2
    on_host = routes(other.host)
    assert on_host[mesh["cleo"].pod_cidr] == "eth0", (
        "a host that does not lead goes through the one that does"
    )
    assert routes(leader.host)[mesh["cleo"].pod_cidr] == "kilo0"


def test_kg_status_names_the_leader_and_the_peers(mesh: Mesh) -> None:
    leader, other = sorted((mesh["ada"], mesh["bob"]), key=leads, reverse=True)

    def told(member: Member) -> Any:
        return json.loads(member.agent.ask("status", "-o", "json"))

    assert told(leader)["plan"]["leads"] == told(other)["plan"]["leads"] == leader.name
    assert {peer["name"] for peer in told(leader)["wireguard"]} == {"cleo", "dan"}
    assert told(other)["wireguard"] == []

    def shaken() -> bool:
        return all(peer["last_handshake"] for peer in told(leader)["wireguard"])

    wait_until(shaken, 10, "the handshakes that there were are told")


def test_forward_that_drops_pods_is_told_with_the_commands_that_open_it(mesh: Mesh) -> None:
    dan = mesh["dan"]
    rules = [("-s", dan.pod_cidr), ("-d", dan.pod_cidr)]
    commands = [f"iptables-nft -I FORWARD {side} {cidr} -j ACCEPT" for side, cidr in rules]

    def told(*words: str) -> bool:
        return all(command in dan.agent.ask(*words) for command in commands)

    try:
        dan.host.run("iptables-nft", "-P", "FORWARD", "DROP")
        wait_until(lambda: told("status"), SECONDS, "kg status names the commands")
        assert told("doctor")
        assert ("cleo", "dan") in mesh.unanswered()
        for command in commands:
            dan.host.run(*command.split())
        wait_until(
            lambda: "FORWARD of iptables-nft" not in dan.agent.status(), SECONDS, "it is no longer told"
        )
        assert mesh.unanswered() == []
    finally:
        dan.host.run("iptables-nft", "-P", "FORWARD", "ACCEPT")
        for side, cidr in rules:
            dan.host.run("iptables-nft", "-D", "FORWARD", side, cidr, "-j", "ACCEPT", check=False)


def test_a_node_joins_and_leaves(mesh: Mesh) -> None:
    with no_ping_lost((mesh["ada"], mesh["cleo"]), (mesh["dan"], mesh["bob"])):
        eve = mesh.add(NodeSpec("eve", "rome"))
        mesh.converge(30)
        assert all_know(mesh, eve.pod_cidr)
        mesh.remove("eve")

        def forgotten() -> bool:
            return all(eve.pod_cidr not in routes(m.host) and peer_for(m, eve.pod_cidr) is None for m in mesh)

        wait_until(forgotten, SECONDS, "nobody has a peer or a route of a node that left")


def test_a_node_changes_its_location(mesh: Mesh) -> None:
    bob = mesh["bob"]
    with no_ping_lost((mesh["cleo"], mesh["dan"])):
        mesh.cluster.label("bob", LOCATION_LABEL, "potsdam")
        wait_until(lambda: all(leads(m) for m in mesh), SECONDS, "every host leads its location")
        others = [m for m in mesh if m is not bob]

        def has_bob_alone(key: str) -> bool:
            return all(bob.pod_cidr in allowed_by_key(m.host).get(key, ()) for m in others)

        key = mesh.cluster.annotations("bob")["key"]
        wait_until(lambda: has_bob_alone(key), SECONDS, "bob is a peer of its own")
        assert mesh.unanswered(SECONDS) == []

        mesh.cluster.label("bob", LOCATION_LABEL, "berlin")
        wait_until(lambda: sum(map(leads, mesh)) == 3, SECONDS, "berlin has one leader again")
        assert mesh.unanswered(SECONDS) == []


@pytest.fixture(scope="module")
def outsider(mesh: Mesh) -> Host:
    """A laptop behind NAT, with nothing but wireguard-go and a private key."""
    laptop = Host("laptop", mesh.logs)
    mesh.underlay.site("home", nat=True).add(laptop)
    laptop.run("sh", "-c", "umask 77; wg genkey > /etc/wg.key; wg pubkey < /etc/wg.key > /etc/wg.pub")
    laptop.start_wireguard_go("wg0")
    laptop.ip(
        f"addr add {OUTSIDER_ADDRESS}/32 dev wg0",
        "link set wg0 mtu 1420 up",
        "route add 10.42.0.0/16 dev wg0",
        "route add 10.4.0.0/16 dev wg0",
    )
    return laptop


def connect(outsider: Host, mesh: Mesh) -> None:
    """Configure the laptop as ``wg setconf`` would from what the cluster says of its leaders."""
    settings = ["private-key", "/etc/wg.key"]
    for leader in (m for m in mesh if leads(m)):
        said = mesh.cluster.annotations(leader.name)
        behind = [m.pod_cidr for m in mesh if m.spec.site == leader.spec.site]
        allowed = ",".join([*behind, said["wireguard-ip"].partition("/")[0] + "/32"])
        settings += ["peer", said["key"], "endpoint", said["endpoint"], "allowed-ips", allowed]
        settings += ["persistent-keepalive", "5"]
    outsider.run("wg", "set", "wg0", *settings)


def test_a_peer_without_endpoint_connects_from_outside(mesh: Mesh, outsider: Host) -> None:
    network = f"{OUTSIDER_ADDRESS}/32"
    key = outsider.read("/etc/wg.pub").strip()
    mesh.cluster.create_peer("laptop", publicKey=key, allowedIPs=[network], persistentKeepalive=5)
    wait_until(lambda: all_know(mesh, network), SECONDS, "every leader has the peer")
    connect(outsider, mesh)
    pods = {m.name: m.address for m in mesh}
    with outsider.call(open_socket) as raw:
        assert reachable({"laptop": raw}, pods, SECONDS).keys() == {("laptop", name) for name in pods}
    sources = {m.name: m.ping_socket() for m in mesh}
    answered = reachable(sources, {"laptop": OUTSIDER_ADDRESS}, SECONDS)
    assert answered.keys() == {(name, "laptop") for name in pods}
    assert mesh.unanswered() == []

    mesh.cluster.delete_peer("laptop")
    wait_until(
        lambda: not any(peer_for(m, network) for m in mesh), SECONDS, "nobody has the peer that was deleted"
    )


def test_pods_reach_the_internet_while_a_peer_claims_all_of_it(mesh: Mesh) -> None:
    def outside() -> set[str]:
        sources = {m.name: m.ping_socket() for m in mesh}
        return {name for name, _ in reachable(sources, {"outside": API_ADDRESS}, SECONDS)}

    everybody = {m.name for m in mesh}
    assert outside() == everybody
    networks = ["0.0.0.0/1", "128.0.0.0/1", "10.5.0.9/32"]
    mesh.cluster.create_peer("exit", publicKey=KEYS[0], allowedIPs=networks, persistentKeepalive=0)
    wait_until(lambda: all_know(mesh, "10.5.0.9/32"), SECONDS, "the rest of the Peer is there")
    for member in mesh:
        wait_until(lambda m=member: "peer exit claims 0.0.0.0/1" in m.agent.status(), 10, "it is named")  # type: ignore[misc]
    assert outside() == everybody
    mesh.cluster.delete_peer("exit")
    wait_until(lambda: not any(peer_for(m, "10.5.0.9/32") for m in mesh), SECONDS, "the Peer is gone again")


def test_bad_objects_cost_the_others_nothing(mesh: Mesh) -> None:
    before = {m.name: allowed_by_key(m.host) for m in mesh}
    with no_ping_lost((mesh["ada"], mesh["cleo"]), (mesh["dan"], mesh["bob"])):
        mesh.cluster.create_node(
            "garbage", "10.42.200.0/24", labels={LOCATION_LABEL: "x"}, annotations=GARBAGE
        )
        nowhere = {"dnsOrIP": {"dns": "no-such-name.invalid"}, "port": 51820}
        mesh.cluster.create_peer(
            "nowhere", publicKey=KEYS[0], allowedIPs=["10.5.0.2/32"], endpoint=nowhere, persistentKeepalive=0
        )
        mesh.cluster.create_peer("good", publicKey=KEYS[1], allowedIPs=["10.5.0.3/32"], persistentKeepalive=0)
        wait_until(lambda: all_know(mesh, "10.5.0.3/32"), SECONDS, "a good peer after bad objects is there")
    known = set(KEYS)
    after = {m.name: {k: v for k, v in allowed_by_key(m.host).items() if k not in known} for m in mesh}
    assert after == before
    for name in ("garbage", "nowhere"):
        wait_until(lambda name=name: name in mesh["ada"].agent.status(), 10, f"{name} is told")  # type: ignore[misc]
    for name in ("nowhere", "good"):
        mesh.cluster.delete_peer(name)
    mesh.cluster.delete_node("garbage")
    wait_until(lambda: not all_know(mesh, "10.5.0.3/32"), SECONDS, "the good peer is gone again")


KEYS = (
    "Zm9yIHRlc3RzIG9ubHksIG51bWJlciBvbmUhISEhIQA=",
    "Zm9yIHRlc3RzIG9ubHksIG51bWJlciB0d28hISEhIQA=",
)
