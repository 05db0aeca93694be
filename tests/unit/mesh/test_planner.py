from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.mesh.planner import Planned, plan
from kilo.mesh.topology import CannotPlan, build
from kilo.model.host import HostFacts, Link, WireGuardPeerState
from kilo.model.keys import PresharedKey
from kilo.model.node import Announcement, Endpoint, Node, Peer, UDPAddress
from kilo.model.plan import CniTarget, Firewall, Interface, PlannedPeer, Summary, Tunnel
from kilo.model.settings import Settings
from kilo.model.topology import PeerView, Segment, TopologyHead, keepers, name_of
from kilo.watcher.objects import NodeObject, NodeSpec, ObjectMeta
from kilo.watcher.translate import annotations_of, node_from
from tests.unit.mesh.states import STATES, at, cluster, inputs, key, node, peer, planned

BARE = Node(name="n1", subnet="10.2.1.0/24")
HOST = HostFacts(
    key("host"),
    links=(Link("eth0", 2, 1500, addresses=("10.0.0.1/24", "203.0.113.1/24")),),
    default_link="eth0",
)


def of_kind(result: Planned, kind: type[Any]) -> list[Any]:
    return [item for item in result.items.values() if isinstance(item, kind)]


def alone(of: Node, on: HostFacts = HOST, **flags: Any) -> Planned:
    return planned(([of], []), of.name, host=on, **flags)


def test_every_item_is_under_its_own_key() -> None:
    for state in STATES.values():
        result = planned(state, iptables_forward_rules=True)
        assert {name: item.key for name, item in result.items.items()} == {k: k for k in result.items}


def test_a_node_without_annotations_takes_part_at_once() -> None:
    result = alone(BARE)
    assert result.announcement == Announcement(
        endpoint=at("203.0.113.1"),
        internal_ip="10.0.0.1/24",
        key=key("host"),
        wireguard_ip="10.4.0.1/16",
        granularity="location",
    )
    assert result.items["interface"] == Interface(
        up=True,
        mtu=1420,
        listen_port=51820,
        address="10.4.0.1/16",
        private_ip="10.0.0.1/24",
        subnet="10.4.0.0/16",
    )
    assert result.cni == CniTarget("10.2.1.0/24", 1420)
    assert result.summary == Summary(0, "location:", True, nodes=1, peers=0, segments=1)


def test_what_the_annotations_said_before_does_not_count() -> None:
    stale = node("n1", endpoint=at("203.0.113.99", 1), internal_ip="10.9.9.9/24", key=key("old"))
    announced = alone(stale, port=7).announcement
    assert (announced.endpoint, announced.internal_ip, announced.key) == (
        at("203.0.113.1", 7),
        "10.0.0.1/24",
        key("host"),
    )


def test_what_is_forced_counts() -> None:
    forced = node("n1", endpoint=Endpoint("vpn.example.com", 1337), forced_endpoint=True)
    forced = msgspec.structs.replace(forced, internal_ip="10.7.0.1/16", forced_internal_ip=True)
    result = alone(forced)
    assert result.announcement.endpoint == Endpoint("vpn.example.com", 1337)
    assert result.announcement.internal_ip == "10.7.0.1/16"
    interface = result.items["interface"]
    assert isinstance(interface, Interface)
    assert interface.listen_port == 1337
    assert interface.private_ip == "10.0.0.1/24", "the forced address is on none of the links"


def test_a_node_can_do_without_a_private_address() -> None:
    result = alone(node("n1", no_internal_ip=True))
    assert result.announcement.internal_ip == ""
    assert result.summary.location == "node:n1"
    assert "tunnel" not in result.items


def test_a_private_address_can_be_preferred() -> None:
    assert alone(BARE, prioritise_private_addresses=True).announcement.endpoint == at("10.0.0.1")


@pytest.mark.parametrize(
    ("local", "host", "missing"),
    [
        (Node(name="n1"), HOST, "n1 has no pod CIDR"),
        (BARE, HostFacts(""), "key of this host"),
        (BARE, HostFacts(key("host")), "no address of this host can be its endpoint"),
    ],
)
def test_what_is_missing_is_named(local: Node, host: HostFacts, missing: str) -> None:
    with pytest.raises(CannotPlan, match=missing):
        alone(local, host)


def test_without_cni_there_is_no_target() -> None:
    assert alone(BARE, cni=False).cni is None


def test_who_does_not_lead_has_no_peers_and_no_address() -> None:
    result = planned(STATES["with peers"], "n2")
    assert of_kind(result, PlannedPeer) == []
    assert result.items["interface"] == Interface(False, 1420, 51820, "", "10.0.0.2/24", "10.4.0.0/16")
    assert result.announcement.wireguard_ip == ""


def test_a_peer_of_the_device() -> None:
    secret = PresharedKey(key("secret"))
    state = cluster(
        node("n1", "x", persistent_keepalive=9),
        node("n2", "y", allowed_location_ips=("192.168.7.9/24",)),
        node("n3", "z", endpoint=Endpoint("n3.example.com", 5), persistent_keepalive=25),
        peer("p", "10.5.0.7/24", preshared_key=secret),
    )
    assert of_kind(planned(state), PlannedPeer) == [
        PlannedPeer(
            key("n2"),
            ("10.2.2.0/24", "10.0.0.2/32", "10.4.0.2/32", "192.168.7.0/24"),
            "203.0.113.2",
            51820,
            keepalive=9,
            name="node n2",
        ),
        PlannedPeer(
            key("n3"),
            ("10.2.3.0/24", "10.0.0.3/32", "10.4.0.3/32"),
            keepalive=9,
            roams=True,
            name="node n3",
        ),
        PlannedPeer(key("p"), ("10.5.0.0/24",), keepalive=9, preshared_key=secret, name="peer p"),
    ]


@pytest.mark.parametrize("keepalive", [-1, 65536])
def test_a_keepalive_that_wireguard_cannot_keep_is_none(keepalive: int) -> None:
    state = cluster(node("n1", "x", persistent_keepalive=keepalive), node("n2", "y"))
    assert [p.keepalive for p in of_kind(planned(state), PlannedPeer)] == [0]


@pytest.mark.parametrize(
    "found", [None, UDPAddress("", 5), UDPAddress("198.51.100.5", 0), UDPAddress("198.51.100.5", 70000)]
)
def test_a_discovered_endpoint_that_is_none_leaves_it_to_wireguard(found: UDPAddress | None) -> None:
    state = cluster(
        node("n1", "x", discovered_endpoints={key("n2"): found}), node("n2", "y", persistent_keepalive=5)
    )
    (other,) = of_kind(planned(state), PlannedPeer)
    assert (other.endpoint_ip, other.endpoint_port, other.roams) == ("", 0, True)


def seen(name: str, ip: str, port: int, handshake: int = 1) -> WireGuardPeerState:
    return WireGuardPeerState(key(name), ip, port, handshake)


def test_only_those_behind_nat_that_were_really_found_are_announced() -> None:
    state = cluster(
        node("n1", "x", discovered_endpoints={key("old"): UDPAddress("198.51.100.1", 1)}),
        node("n2", "y"),
        node("n3", "z", persistent_keepalive=25),
        node("n4", "w", persistent_keepalive=25),
        peer("p", "10.5.0.1/32", persistent_keepalive=5),
        peer("q", "10.5.0.2/32"),
    )
    states = (
        seen("n2", "198.51.100.2", 2),
        seen("n3", "198.51.100.3", 3),
        seen("n4", "198.51.100.4", 4, handshake=0),
        seen("p", "2001:db8::5", 5),
        seen("q", "198.51.100.6", 6),
    )
    result = planned(state, wireguard={s.public_key: s for s in states})
    found = {key("n3"): UDPAddress("198.51.100.3", 3), key("p"): UDPAddress("2001:db8::5", 5)}
    assert result.announcement.discovered_endpoints == found
    peers = {p.public_key: (p.endpoint_ip, p.endpoint_port) for p in of_kind(result, PlannedPeer)}
    assert peers[key("n3")] == ("198.51.100.3", 3)
    assert peers[key("n2")] == ("203.0.113.2", 51820)
    before_anybody_looked = planned(state, wireguard=None).announcement
    assert set(before_anybody_looked.discovered_endpoints) == {key("old")}


def test_networks_reach_the_kernel_without_host_bits() -> None:
    state = cluster(
        node("n1", "x", allowed_location_ips=("172.30.1.1/24",)), node("n2", "y"), peer("p", "10.5.0.7/24")
    )
    result = planned(state)
    assert "route/0/10.5.0.0/24" in result.items
    assert "entry/masquerade_from/10.5.0.0/24" in result.items
    assert "entry/masquerade_to/172.30.1.0/24" in result.items


@pytest.mark.parametrize(
    ("flags", "tunnel"),
    [
        ({}, Tunnel("ipip", "10.2.1.1/32")),
        ({"encapsulate": "crosssubnet"}, Tunnel("ipip", "10.2.1.1/32")),
        ({"compatibility": "cilium"}, Tunnel("cilium", "10.2.1.1/32")),
        ({"compatibility": "flannel"}, Tunnel("flannel", "")),
        ({"local": False}, Tunnel("ipip", "")),
        ({"encapsulate": "never"}, None),
    ],
)
def test_the_tunnel(flags: dict[str, Any], tunnel: Tunnel | None) -> None:
    assert alone(BARE, **flags).items.get("tunnel") == tunnel


def test_a_pod_cidr_of_one_address_gives_that() -> None:
    assert alone(Node(name="n1", subnet="10.2.1.7/32")).items["tunnel"] == Tunnel("ipip", "10.2.1.7/32")


def test_cilium_announces_its_address() -> None:
    links = (*HOST.links, Link("cilium_host", 9, 1500, addresses=("10.2.1.77/32",)))
    host = msgspec.structs.replace(HOST, links=links)
    assert alone(BARE, host, compatibility="cilium").announcement.cni_compatibility_ip == "10.2.1.77/32"
    assert alone(BARE, host).announcement.cni_compatibility_ip == ""


def test_internal_cidr_that_holds_no_address_is_named_with_the_addresses() -> None:
    host = msgspec.structs.replace(
        HOST, links=(Link("eth0", 2, 1500, addresses=("10.0.0.1/24", "192.168.7.1/24")),)
    )
    with pytest.raises(CannotPlan) as caught:
        alone(BARE, host, internal_cidrs=("10.9.0.0/16", "172.16.0.0/12"))
    assert str(caught.value) == (
        "no address of this host can be its endpoint: it has 10.0.0.1/24, 192.168.7.1/24, and "
        "--internal-cidr=10.9.0.0/16,172.16.0.0/12 holds none of them; give a network that holds one, "
        "or leave the flag out"
    )
    many = tuple(f"10.0.{n}.1/24" for n in range(9))
    host = msgspec.structs.replace(HOST, links=(Link("eth0", 2, 1500, addresses=many),))
    with pytest.raises(
        CannotPlan, match=r"10\.0\.3\.1/24 and 5 more, and --internal-cidr=10\.9\.0\.0/16 holds"
    ):
        alone(BARE, host, internal_cidrs=("10.9.0.0/16",))


def test_forwarding_is_for_pods_alone() -> None:
    assert alone(BARE, iptables_forward_rules=True).items["firewall"] == Firewall(True, True, BARE.subnet)
    assert alone(BARE, iptables_forward_rules=True, cni=False).items["firewall"] == Firewall(True, False)


def test_view_says_which_of_those_with_one_key_lost_it() -> None:
    same = key("laptop")
    state = cluster(
        node("n1", "x"),
        node("n2", "y", created=1),
        peer("laptop", "10.5.0.1/32"),
    )
    copies = [
        Peer("copy", same, ("10.5.0.2/32",), created=5),
        Peer("zeta", key("n2"), ("10.5.0.3/32",), created=5),
    ]
    first = msgspec.structs.replace(state[1][0], created=1)
    found = planned((state[0], [*copies, first]))
    lost = {name for name, item in found.view.items() if getattr(item, "key_lost", False)}
    assert lost == {"peer/copy", "peer/zeta"}
    assert {name_of(item) for item in keepers(found.view.values()).values()} == {"n1", "n2", "laptop"}


def test_the_view_has_no_secrets() -> None:
    secret = key("secret")
    state = cluster(node("n1", "x"), peer("p", "10.5.0.1/32", preshared_key=PresharedKey(secret)))
    result = planned(state)
    assert result.view["head"] == TopologyHead("n1", "location:x", True, "10.4.0.0/16")
    assert result.view["peer/p"] == PeerView("p", key("p"), ("10.5.0.1/32",))
    assert set(result.view) == {"head", "peer/p", "segment/location:x"}
    assert secret not in repr(result)


@given(st.sampled_from(sorted(STATES)), st.randoms())
def test_the_plan_does_not_depend_on_any_order(name: str, shuffler: Any) -> None:
    nodes, peers = STATES[name]
    given_first = inputs((nodes, peers), iptables_forward_rules=True)
    nodes, peers = list(nodes), list(peers)
    shuffler.shuffle(nodes)
    shuffler.shuffle(peers)
    assert plan(inputs((nodes, peers), iptables_forward_rules=True)) == plan(given_first)


PUBLIC_ALONE = (Link("eth0", 2, 1500, addresses=("203.0.113.1/24",)),)
SERVICES = Link("kube-ipvs0", 3, 1500, "dummy", False, ("10.233.0.1/32",))


def test_address_of_a_service_is_no_internal_ip_and_that_is_said() -> None:
    on = HostFacts(key("host"), links=(*PUBLIC_ALONE, SERVICES), default_link="eth0")
    result = alone(BARE, on)
    assert result.announcement.internal_ip == ""
    assert result.summary.location == "node:n1"
    assert result.internal_ip == (
        "none: 10.233.0.1 does not count (kube-ipvs0 is down);"
        " annotate node n1 with kilo.squat.ai/force-internal-ip=10.233.0.1/32 if it is to count"
    )
    assert not result.conflicts, "a node without an internal IP is not degraded"
    refused = node("n1", internal_ip="", no_internal_ip=True)
    assert alone(refused, on).internal_ip == "none, by the annotation kilo.squat.ai/force-internal-ip"
    forced = node("n1", internal_ip="10.233.0.1/32", forced_internal_ip=True)
    assert alone(forced, on).announcement.internal_ip == "10.233.0.1/32"
    wanted = alone(BARE, on, internal_cidrs=("10.233.0.0/18",))
    assert wanted.announcement.internal_ip == "10.233.0.1/32"
    assert wanted.internal_ip == "10.233.0.1"


def test_internal_cidr_that_holds_no_address_is_named_where_there_is_no_internal_ip() -> None:
    result = alone(BARE, internal_cidrs=("10.9.0.0/16", "fd00::/16"))
    assert (
        result.internal_ip
        == "none: no private address of this host is in --internal-cidr 10.9.0.0/16, fd00::/16"
    )
    on = HostFacts(key("host"), links=(*HOST.links, SERVICES), default_link="eth0")
    assert "--internal-cidr" in alone(BARE, on, internal_cidrs=("172.16.0.0/12",)).internal_ip


def test_internal_ip_of_a_host_with_public_addresses_alone_is_none() -> None:
    assert alone(BARE, HostFacts(key("host"), links=PUBLIC_ALONE)).internal_ip == "none"


@pytest.mark.parametrize("granularity", ["location", "full"])
def test_leaders_in_a_mixed_mesh_agree_where_go_agents_choose_other_addresses(granularity: str) -> None:
    """Every agent reads what a node announces. Go agents announce the service's address of kube-ipvs0 as
    their internal IP, and lead a location of several; ours announce none, and each leads itself."""
    go = [
        node(f"n{i}", "x", internal_ip="10.233.0.1/32", endpoint=at(f"203.0.113.{i}"), leader=i == 4)
        for i in (3, 4, 5)
    ]
    ours = []
    for i in (1, 2):
        links = (Link("eth0", 2, 1500, addresses=(f"203.0.113.{i}/24",)), SERVICES)
        bare = Node(name=f"n{i}", location="x", subnet=f"10.2.{i}.0/24")
        on = HostFacts(key(f"n{i}"), links=links, default_link="eth0")
        announced = annotations_of(alone(bare, on, mesh_granularity=granularity).announcement, 1)
        annotations = {**announced, "kilo.squat.ai/location": "x"}
        found = NodeObject(ObjectMeta(f"n{i}", annotations=annotations), NodeSpec(bare.subnet))
        ours.append((on, node_from(found, "").node))
    everyone = [*go, *(read for _, read in ours)]
    views = [build(everyone, [], Settings(n.name, mesh_granularity=granularity)) for n in everyone]
    elected = {tuple((s.location, s.hostnames[s.leader], s.wireguard_ip) for s in v.segments) for v in views}
    assert len(elected) == 1, "by what is announced"
    leaders = {name for _, name, _ in elected.pop()}
    assert leaders == ({"n1", "n2", "n4"} if granularity == "location" else {f"n{i}" for i in range(1, 6)})
    for on, read in ours:
        planned_here = planned((everyone, []), read.name, host=on, mesh_granularity=granularity)
        own = {
            item.hostnames[item.leader] for item in planned_here.view.values() if isinstance(item, Segment)
        }
        assert own == leaders, "and in the plan of each host of ours, which is made from what it finds"
