from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.errors import ProtocolError
from kilo.watcher.objects import (
    MalformedObject,
    Status,
    decode_event,
    decode_node,
    decode_nodes,
    decode_peer,
    decode_peers,
    decode_status,
    decode_version,
)

NODE = {
    "kind": "Node",
    "metadata": {
        "name": "n",
        "uid": "u",
        "resourceVersion": "7",
        "labels": {"a": "b"},
        "annotations": {"kilo.squat.ai/key": "k"},
        "managedFields": [{"fieldsV1": {"f:metadata": {}}}],
    },
    "spec": {"podCIDR": "10.2.0.0/24", "podCIDRs": ["10.2.0.0/24"], "taints": []},
    "status": {"images": [{"names": ["x"], "sizeBytes": 5}]},
}
SECRET = "c2VjcmV0"


def test_of_a_node_only_what_matters_is_read() -> None:
    node = decode_node(json.dumps(NODE).encode())
    assert (node.metadata.name, node.metadata.uid, node.metadata.resource_version) == ("n", "u", "7")
    assert (node.labels, node.annotations) == ({"a": "b"}, {"kilo.squat.ai/key": "k"})
    assert node.pod_cidr == "10.2.0.0/24"


@pytest.mark.parametrize("spec", ['"spec":null', '"spec":{}', '"spec":{"podCIDR":null}', '"status":{}'])
def test_what_a_node_does_not_have_is_empty(spec: str) -> None:
    node = decode_node(f'{{"metadata":{{"name":"n","labels":null}},{spec}}}'.encode())
    assert (node.labels, node.annotations, node.pod_cidr) == ({}, {}, "")


@pytest.mark.parametrize(
    ("raw", "name", "field"),
    [
        ('{"metadata":{"name":"p"},"spec":{"allowedIPs":["10.0.0.1/32",5]}}', "p", "spec.allowedIPs[1]"),
        ('{"metadata":{"name":"p"},"spec":{"endpoint":{"port":"7"}}}', "p", "spec.endpoint.port"),
        ('{"metadata":{"name":"p"},"spec":{"persistentKeepalive":2.5}}', "p", "spec.persistentKeepalive"),
        ('{"metadata":{"name":"p","labels":{"a":1}}}', "p", "metadata.labels[...]"),
        ('{"metadata":{"name":7}}', "", "metadata.name"),
        ('{"metadata":{}}', "", "metadata.name"),
        ('{"spec":{}}', "", ""),
        ("[]", "", ""),
        ("{", "", ""),
        ("", "", ""),
    ],
)
def test_a_peer_that_does_not_decode_is_named(raw: str, name: str, field: str) -> None:
    with pytest.raises(MalformedObject) as caught:
        decode_peer(raw.encode())
    assert (caught.value.kind, caught.value.name, caught.value.field) == ("Peer", name, field)
    assert caught.value.reason


def test_a_malformed_object_costs_only_itself() -> None:
    items = [{"metadata": {"name": name}, "spec": spec} for name, spec in (("a", {}), ("b", 5), ("c", {}))]
    page = {"kind": "PeerList", "metadata": {"resourceVersion": "9", "continue": "t"}, "items": items}
    peers = decode_peers(json.dumps(page).encode())
    assert [peer.metadata.name for peer in peers.items] == ["a", "c"]
    assert [bad.name for bad in peers.refused] == ["b"]
    assert (peers.metadata.resource_version, peers.metadata.continue_) == ("9", "t")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "input data was truncated"),
        (b"[]", "expected `object`, got `array`"),
        (b"\xff", "JSON is malformed"),
        (b"{}", "missing required field `kind`"),
        (b'{"kind":"NodeList","metadata":{"resourceVersion":"1"}}', "missing required field `items`"),
        (b'{"kind":"NodeList","metadata":{"resourceVersion":"1"},"items":null}', "items: expected `array`"),
        (b'{"kind":"NodeList","metadata":{"resourceVersion":"1"},"items":5}', "items: expected `array`"),
        (b'{"kind":"NodeList","items":[]}', "missing required field `metadata`"),
        (b'{"kind":"NodeList","metadata":{},"items":[]}', "metadata.resourceVersion is missing"),
        (b'{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[]}', "the kind is 'PodList'"),
        (b'{"kind":"Status","metadata":{},"items":[],"code":503}', "the kind is 'Status'"),
    ],
)
def test_what_is_no_list_does_not_count_as_an_empty_one(raw: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_nodes(raw)
    assert str(caught.value).startswith("NodeList: ")
    assert reason.lower() in str(caught.value).lower()


def test_watch_events() -> None:
    event = decode_event(json.dumps({"type": "ADDED", "object": NODE}).encode())
    assert (event.type, decode_node(event.object).metadata.name) == ("ADDED", "n")
    bookmark = decode_event(b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"12"}}}')
    assert decode_version(bookmark.object) == "12"
    error = decode_event(b'{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"too old"}}')
    assert decode_status(error.object) == Status(410, "Expired", "too old")
    for raw in (b"", b"{}", b'{"type":5,"object":{}}'):
        with pytest.raises(ProtocolError):
            decode_event(raw)


def test_a_secret_is_in_no_text() -> None:
    peer = decode_peer(f'{{"metadata":{{"name":"p"}},"spec":{{"presharedKey":"{SECRET}"}}}}'.encode())
    assert SECRET not in repr(peer)
    with pytest.raises(MalformedObject) as caught:
        decode_peer(f'{{"metadata":{{"name":"p"}},"spec":{{"presharedKey":["{SECRET}"]}}}}'.encode())
    assert SECRET not in str(caught.value)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for decode in (decode_node, decode_peer, decode_event, decode_nodes, decode_status, decode_version):
        try:
            decode(raw)
        except ProtocolError as e:
            assert str(e)
