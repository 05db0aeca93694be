from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.model.keys import ZERO, PresharedKey
from kilo.model.node import Announcement, Endpoint, Node, Peer, UDPAddress
from kilo.watcher.objects import NodeObject, ObjectMeta, PeerObject, PeerSpec, decode_peer
from kilo.watcher.translate import (
    ANNOTATIONS_TO_REMOVE,
    MOST_NAMED,
    PREFIX,
    FieldProblem,
    NodeReading,
    PeerReading,
    annotations_of,
    is_alive,
    node_from,
    not_ready_reason,
    peer_from,
    peer_not_ready_reason,
)

REGION = "topology.kubernetes.io/region"
KEY = "cIYmSC9hxiN5YnzBJNRGGDxuTZ6hpaXM9y4hQMMEvXw="


def read(annotations: dict[str, str] | None = None, pod_cidr: str = "", **labels: str) -> NodeReading:
    named = {PREFIX + name: value for name, value in (annotations or {}).items()}
    region = {REGION: labels["region"]} if labels else {}
    spec = {"podCIDR": pod_cidr} if pod_cidr else {}
    raw = {"metadata": {"name": "n", "annotations": named, "labels": region}, "spec": spec}
    return node_from(msgspec.convert(raw, NodeObject), REGION)


def node(annotations: dict[str, str] | None = None, pod_cidr: str = "", **labels: str) -> Node:
    return read(annotations, pod_cidr, **labels).node


def at(ip: str, port: int = 51820) -> Endpoint:
    return Endpoint(ip, port, ip)


@pytest.mark.parametrize(
    ("annotations", "fields"),
    [
        ({}, {}),
        ({"endpoint": "10.0.0.1", "internal-ip": "foo"}, {}),
        (
            {"endpoint": "10.0.0.1:51820", "internal-ip": "10.0.0.2/32"},
            {"endpoint": at("10.0.0.1"), "internal_ip": "10.0.0.2/32"},
        ),
        (
            {"endpoint": "[ff10::10]:51820", "internal-ip": "ff60::10/64"},
            {"endpoint": at("ff10::10"), "internal_ip": "ff60::10/64"},
        ),
        ({"location": "b"}, {"location": "b"}),
        (
            {"endpoint": "10.0.0.1:51820", "force-endpoint": "-10.0.0.2:51821"},
            {"endpoint": at("10.0.0.1")},
        ),
        (
            {"endpoint": "10.0.0.1:51820", "force-endpoint": "10.0.0.2:51821"},
            {"endpoint": at("10.0.0.2", 51821), "forced_endpoint": True},
        ),
        (
            {"internal-ip": "10.1.0.1/24", "force-internal-ip": "-10.1.0.2/24"},
            {"internal_ip": "10.1.0.1/24"},
        ),
        (
            {"internal-ip": "10.1.0.1/24", "force-internal-ip": "10.1.0.2/24"},
            {"internal_ip": "10.1.0.2/24", "forced_internal_ip": True},
        ),
        ({"internal-ip": "10.1.0.1/24", "force-internal-ip": ""}, {"no_internal_ip": True}),
        ({"internal-ip": "10.1.0.1/24", "force-internal-ip": "-"}, {"no_internal_ip": True}),
        ({"internal-ip": ""}, {}),
        ({"persistent-keepalive": "25"}, {"persistent_keepalive": 25}),
        ({"persistent-keepalive": "x"}, {}),
        ({"persistent-keepalive": "-1"}, {"persistent_keepalive": -1}),
        ({"leader": ""}, {"leader": True}),
        ({"leader": "false"}, {"leader": True}),
        ({"key": KEY}, {"key": KEY}),
        ({"key": KEY[:9] + "\r\n" + KEY[9:]}, {"key": KEY}),
        ({"key": KEY[:-2] + "x="}, {"key": KEY}),
        ({"key": KEY[:-1]}, {}),
        ({"key": ZERO}, {}),
        ({"granularity": "full"}, {"granularity": "full"}),
        ({"granularity": "strange"}, {}),
        ({"wireguard-ip": "10.4.0.1/16"}, {"wireguard_ip": "10.4.0.1/16"}),
        ({"cni-compatibility-ip": "10.2.0.7/32"}, {"cni_compatibility_ip": "10.2.0.7/32"}),
        (
            {"allowed-location-ips": "nope,88.88.88.5/24, 1.2.3.4/32,::ffff:1.2.3.4/120"},
            {"allowed_location_ips": ("88.88.88.5/24", "1.2.3.4/24")},
        ),
        ({"discovered-endpoints": ""}, {}),
        ({"discovered-endpoints": "{broken"}, {}),
        (
            {"discovered-endpoints": '{"k":{"IP":"1.2.3.4","Port":5,"Zone":""}}'},
            {"discovered_endpoints": {"k": UDPAddress("1.2.3.4", 5)}},
        ),
    ],
)
def test_annotations_are_read_as_the_go_agent_reads_them(
    annotations: dict[str, str], fields: dict[str, Any]
) -> None:
    assert node(annotations) == Node(name="n", **fields)


def test_the_location_annotation_wins_over_the_label() -> None:
    assert node(region="a").location == "a"
    assert node({"location": "b"}, region="a").location == "b"
    assert node({"location": ""}, region="a").location == ""


@pytest.mark.parametrize(
    ("pod_cidr", "subnet"), [("10.2.0.1/24", "10.2.0.0/24"), ("foo", ""), ("fd20::1/64", "fd20::/64")]
)
def test_the_pod_cidr_has_no_host_bits(pod_cidr: str, subnet: str) -> None:
    assert node(pod_cidr=pod_cidr).subnet == subnet


@pytest.mark.parametrize(
    ("text", "last_seen"),
    [("1000000000", 1000000000), ("foo", 0), ("", 0), ("+5", 5), ("9" * 30, 0), ("-5", -5)],
)
def test_last_seen(text: str, last_seen: int) -> None:
    assert read({"last-seen": text}).last_seen == last_seen


@pytest.mark.parametrize(("ago", "alive"), [(-5, True), (0, True), (59, True), (60, False), (10**9, False)])
def test_a_node_is_alive_for_a_minute(ago: int, alive: bool) -> None:
    assert is_alive(4102444800 - ago, 4102444800) is alive


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("endpoint", "x"), ("force-endpoint", "1.2.3.4:0"), ("internal-ip", "10.0.0.1")),
        *(("force-internal-ip", "garbage"), ("cni-compatibility-ip", "1.2.3.4"), ("wireguard-ip", "?")),
        *(("key", "bm90IGEga2V5"), ("last-seen", "soon"), ("persistent-keepalive", "x")),
        *(("persistent-keepalive", "70000"), ("discovered-endpoints", "{broken"), ("granularity", "strange")),
        ("allowed-location-ips", "10.0.0.0/8,nope"),
    ],
)
def test_what_is_malformed_is_named(name: str, text: str) -> None:
    (problem,) = read({name: text}).problems
    assert problem.field == name
    assert problem.reason


def test_networks_that_are_malformed_are_all_named() -> None:
    reading = read({"allowed-location-ips": " 10.6.0.1/32 , 10.6.0.2/32,10.6.0.3/32,,nope"})
    assert reading.node.allowed_location_ips == ("10.6.0.3/32",)
    (problem,) = reading.problems
    assert problem.reason == (
        "' 10.6.0.1/32 ' is not in CIDR notation (write it without blanks); "
        "' 10.6.0.2/32' is not in CIDR notation (write it without blanks); '' is not in CIDR notation; "
        "'nope' is not in CIDR notation"
    )


def test_networks_that_are_malformed_are_counted_where_there_are_many() -> None:
    (problem,) = read({"allowed-location-ips": ",".join(["x"] * 1000)}).problems
    assert problem.reason.count("'x' is not in CIDR notation") == MOST_NAMED
    assert problem.reason.endswith(f"; and {1000 - MOST_NAMED} more")


@pytest.mark.parametrize("name", ["internal-ip", "force-internal-ip", "wireguard-ip", "cni-compatibility-ip"])
def test_address_with_blanks_is_left_out_and_named_with_what_to_do(name: str) -> None:
    reading = read({name: "10.6.0.1/32 "})
    assert reading.node == Node(name="n")
    assert [p.reason for p in reading.problems] == [
        "'10.6.0.1/32 ' is not in CIDR notation (write it without blanks)"
    ]


def test_peer_names_all_of_its_networks_that_are_malformed() -> None:
    (problem,) = peer(allowedIPs=["10.0.0.1/32", " 10.0.0.2/32", "bad"]).problems
    assert problem.field == "spec.allowedIPs"
    assert "' 10.0.0.2/32'" in problem.reason and "'bad'" in problem.reason


@pytest.mark.parametrize("seconds", [65536, 1 << 40, (1 << 63) - 1])
def test_peer_keepalive_above_what_wireguard_has_is_left_out_and_named(seconds: int) -> None:
    reading = peer(persistentKeepalive=seconds)
    assert reading.peer == peer().peer
    assert reading.problems == (
        FieldProblem(
            "spec.persistentKeepalive",
            f"{seconds} s is not one of 0 to 65535; the Peer is used without a keepalive",
        ),
    )
    assert peer(persistentKeepalive=65535).problems == ()


def test_a_malformed_pod_cidr_is_named() -> None:
    assert [problem.field for problem in read(pod_cidr="foo").problems] == ["spec.podCIDR"]


def test_a_key_is_not_quoted() -> None:
    assert "bm90" not in str(read({"key": "bm90IGEga2V5"}).problems)


def test_what_a_go_agent_writes_for_nothing_is_no_problem() -> None:
    empty = ("endpoint", "internal-ip", "wireguard-ip", "discovered-endpoints", "cni-compatibility-ip")
    assert read(dict.fromkeys(empty, "")).problems == ()


READY = {"endpoint": "203.0.113.1:51820", "key": KEY}


@pytest.mark.parametrize(
    ("annotations", "pod_cidr", "alive", "field", "reason"),
    [
        ({"key": KEY}, "10.2.0.0/24", True, "endpoint", "not set"),
        (READY | {"endpoint": "x:y"}, "10.2.0.0/24", True, "endpoint", "port"),
        ({"key": KEY, "force-endpoint": "x:y"}, "10.2.0.0/24", True, "force-endpoint", "port"),
        (READY | {"key": ""}, "10.2.0.0/24", True, "key", "not set"),
        (READY | {"key": "x"}, "10.2.0.0/24", True, "key", "not base64"),
        (READY, "", True, "spec.podCIDR", "no pod CIDR"),
        ({}, "", True, "spec.podCIDR", "its agent announces nothing until it has one"),
        ({}, "x", False, "spec.podCIDR", "CIDR notation"),
        (READY, "x", True, "spec.podCIDR", "CIDR notation"),
        (READY, "10.2.0.0/24", False, "last-seen", "does an agent run there?"),
        (READY | {"last-seen": "soon"}, "10.2.0.0/24", False, "last-seen", "'soon'"),
    ],
)
def test_why_a_node_takes_no_part(
    annotations: dict[str, str], pod_cidr: str, alive: bool, field: str, reason: str
) -> None:
    reading = read(annotations, pod_cidr)
    found = not_ready_reason(reading.node, alive, reading.problems)
    assert found is not None
    assert found.field == field
    assert reason in found.reason


def test_a_node_needs_no_more_than_that() -> None:
    assert not_ready_reason(node(READY, "10.2.0.0/24"), True) is None
    named = node(READY | {"endpoint": "node.example.com:5"}, "10.2.0.0/24")
    assert not_ready_reason(named, True) is None, "a name need not be resolved"


SOUND: dict[str, Any] = {"allowedIPs": ["10.5.0.1/24", "fd10::1/128"], "publicKey": KEY}


def peer(**fields: Any) -> PeerReading:
    raw = {"metadata": {"name": "p"}, "spec": SOUND | fields}
    return peer_from(decode_peer(msgspec.json.encode(raw)))


def test_a_peer() -> None:
    full = peer(
        endpoint={"dnsOrIP": {"ip": "192.0.2.1"}, "port": 7}, persistentKeepalive=25, presharedKey=KEY
    )
    assert full == PeerReading(
        "p",
        Peer("p", KEY, ("10.5.0.1/24", "fd10::1/128"), at("192.0.2.1", 7), 25, PresharedKey(KEY)),
    )
    assert peer(endpoint=None, persistentKeepalive=0).peer == Peer("p", KEY, ("10.5.0.1/24", "fd10::1/128"))


@pytest.mark.parametrize(
    ("where", "endpoint"),
    [
        ({"ip": "2001:DB8::99"}, at("2001:db8::99", 7)),
        ({"dns": "vpn.example.com"}, Endpoint("vpn.example.com", 7)),
        ({"dns": "vpn.example.com", "ip": "192.0.2.1"}, Endpoint("vpn.example.com", 7)),
        ({"dns": "192.0.2.8"}, at("192.0.2.8", 7)),
    ],
)
def test_an_endpoint_of_a_peer(where: dict[str, str], endpoint: Endpoint) -> None:
    found = peer(endpoint={"dnsOrIP": where, "port": 7}).peer
    assert found is not None
    assert found.endpoint == endpoint


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"allowedIPs": ["10.0.0.1/32", "bad"]}, "spec.allowedIPs"),
        ({"endpoint": {}}, "spec.endpoint"),
        ({"endpoint": {"dnsOrIP": {}, "port": 7}}, "spec.endpoint"),
        ({"endpoint": {"dnsOrIP": {"ip": "1.2.3"}, "port": 7}}, "spec.endpoint"),
        ({"endpoint": {"dnsOrIP": {"ip": "1.2.3", "dns": "a.example"}, "port": 7}}, "spec.endpoint"),
        ({"endpoint": {"dnsOrIP": {"dns": "Bad_Name"}, "port": 7}}, "spec.endpoint"),
        ({"endpoint": {"dnsOrIP": {"ip": "1.2.3.4"}, "port": 0}}, "spec.endpoint"),
        ({"endpoint": {"dnsOrIP": {"ip": "1.2.3.4"}, "port": 65536}}, "spec.endpoint"),
        ({"persistentKeepalive": -1}, "spec.persistentKeepalive"),
        ({"publicKey": "YWJj"}, "spec.publicKey"),
        ({"publicKey": ""}, "spec.publicKey"),
        ({"publicKey": None}, "spec.publicKey"),
    ],
)
def test_a_peer_that_fails_validation(fields: dict[str, Any], field: str) -> None:
    reading = peer(**fields)
    assert reading.peer is None
    assert [problem.field for problem in reading.problems] == [field]


def test_a_preshared_key_that_is_none_is_left_out_and_named() -> None:
    reading = peer(presharedKey="x")
    assert reading.peer is not None
    assert reading.peer.preshared_key is None
    assert [problem.field for problem in reading.problems] == ["spec.presharedKey"]
    assert peer(presharedKey=ZERO).peer == peer().peer


@pytest.mark.parametrize(
    ("fields", "field"), [({"allowedIPs": []}, "spec.allowedIPs"), ({"publicKey": ZERO}, "spec.publicKey")]
)
def test_a_valid_peer_may_still_take_no_part(fields: dict[str, Any], field: str) -> None:
    found = peer(**fields).peer
    assert found is not None
    reason = peer_not_ready_reason(found)
    assert reason is not None
    assert reason.field == field
    assert peer_not_ready_reason(Peer("p", KEY, ("10.0.0.1/32",))) is None


def test_annotations_are_written_as_the_go_agent_writes_them() -> None:
    announcement = Announcement(
        endpoint=at("2001:db8::1", 51821),
        internal_ip="10.0.0.1/24",
        key=KEY,
        wireguard_ip="10.4.0.1/16",
        discovered_endpoints={
            "b=": UDPAddress("2001:db8::5", 2),
            "a=": UDPAddress("1.2.3.4", 1),
        },
        granularity="full",
        cni_compatibility_ip="10.2.0.7/32",
    )
    assert annotations_of(announcement, 4102444800) == {
        "kilo.squat.ai/endpoint": "[2001:db8::1]:51821",
        "kilo.squat.ai/internal-ip": "10.0.0.1/24",
        "kilo.squat.ai/key": KEY,
        "kilo.squat.ai/last-seen": "4102444800",
        "kilo.squat.ai/wireguard-ip": "10.4.0.1/16",
        "kilo.squat.ai/discovered-endpoints": (
            '{"a=":{"IP":"1.2.3.4","Port":1,"Zone":""},"b=":{"IP":"2001:db8::5","Port":2,"Zone":""}}'
        ),
        "kilo.squat.ai/granularity": "full",
        "kilo.squat.ai/cni-compatibility-ip": "10.2.0.7/32",
    }


def test_what_there_is_not_is_written_empty() -> None:
    written = annotations_of(Announcement(endpoint=Endpoint("a.example", 5), key=KEY), 1)
    assert written["kilo.squat.ai/internal-ip"] == ""
    assert written["kilo.squat.ai/wireguard-ip"] == ""
    assert written["kilo.squat.ai/cni-compatibility-ip"] == ""
    assert written["kilo.squat.ai/discovered-endpoints"] == "{}"
    assert written["kilo.squat.ai/endpoint"] == "a.example:5"


def test_what_is_written_is_removed_again() -> None:
    assert set(ANNOTATIONS_TO_REMOVE) == set(annotations_of(Announcement(), 0))


def test_what_is_written_is_read_back() -> None:
    announcement = Announcement(
        endpoint=at("203.0.113.1"),
        internal_ip="10.0.0.1/24",
        key=KEY,
        wireguard_ip="10.4.0.1/16",
        discovered_endpoints={KEY: UDPAddress("1.2.3.4", 1)},
        granularity="location",
        cni_compatibility_ip="10.2.0.7/32",
    )
    annotations = annotations_of(announcement, 5)
    reading = node_from(NodeObject(ObjectMeta("n", annotations=annotations)), REGION)
    assert reading.last_seen == 5
    assert reading.problems == ()
    for field in announcement.__struct_fields__:
        assert getattr(reading.node, field) == getattr(announcement, field)


ANNOTATIONS = (
    *("endpoint", "force-endpoint", "internal-ip", "force-internal-ip", "key", "last-seen", "leader"),
    *("location", "persistent-keepalive", "wireguard-ip", "discovered-endpoints", "granularity"),
    *("allowed-location-ips", "cni-compatibility-ip"),
)
texts = st.text(max_size=12) | st.from_regex(r"[\[\]0-9a-f.:/,%+{}\"-]{0,16}", fullmatch=True)


@given(st.dictionaries(st.sampled_from(ANNOTATIONS), texts), texts)
def test_no_annotation_can_do_harm(annotations: dict[str, str], pod_cidr: str) -> None:
    reading = read(annotations, pod_cidr)
    encoded = msgspec.msgpack.encode(reading.node)
    assert msgspec.msgpack.decode(encoded, type=Node) == reading.node
    reason = not_ready_reason(reading.node, True, reading.problems)
    assert reason is None or isinstance(reason, FieldProblem)


@given(st.lists(texts, max_size=3), texts, texts, st.integers(-5, 1 << 20), st.integers(-1, 1 << 17))
def test_no_peer_can_do_harm(allowed: list[str], host: str, secret: str, keepalive: int, port: int) -> None:
    reading = peer(
        allowedIPs=allowed,
        endpoint={"dnsOrIP": {"dns": host}, "port": port},
        presharedKey=secret,
        persistentKeepalive=keepalive,
    )
    assert (reading.peer is None) <= bool(reading.problems)


def test_a_peer_without_a_spec_is_rejected() -> None:
    assert peer_from(PeerObject(ObjectMeta("p"), PeerSpec())).peer is None
