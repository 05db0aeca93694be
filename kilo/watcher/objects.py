"""Kubernetes objects as the API sends them: only the fields that matter, decoded straight from bytes.

A Node can weigh 20 kB, of which a few hundred bytes count; what is not named here is skipped
unread. Lists and watch events are taken apart first and decoded object by object, so that one
that is malformed costs only itself. Used by the watcher's API client and by ``kg plan``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from kilo.errors import ProtocolError

NODE = "Node"
PEER = "Peer"
MAX_QUOTED = 60


class MalformedObject(ProtocolError):
    """An object that does not decode. ``field`` is dotted, such as ``spec.port``; "" for the whole."""

    def __init__(self, kind: str, name: str, field: str, reason: str) -> None:
        super().__init__(f"{kind} {name or '(without a name)'}: {field + ': ' if field else ''}{reason}")
        self.kind = kind
        self.name = name
        self.field = field
        self.reason = reason


class ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    """Of a list: the version to watch from, and the token of the next page ("" on the last)."""

    resource_version: str = ""
    continue_: str | None = msgspec.field(name="continue", default=None)


class ObjectMeta(msgspec.Struct, frozen=True, rename="camel"):
    """Of an object. The maps are None where the object has none; see the properties of its owner."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class NodeSpec(msgspec.Struct, frozen=True):
    """Of a Node: its pod CIDR, as text, "" while it has none."""

    pod_cidr: str | None = msgspec.field(name="podCIDR", default=None)


class NodeObject(msgspec.Struct, frozen=True):
    """A Node."""

    metadata: ObjectMeta
    spec: NodeSpec | None = None

    @property
    def annotations(self) -> dict[str, str]:
        return self.metadata.annotations or {}

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.labels or {}

    @property
    def pod_cidr(self) -> str:
        return (self.spec.pod_cidr if self.spec else None) or ""


class DNSOrIP(msgspec.Struct, frozen=True):
    """Of a PeerEndpoint: a name or an address; with both, the name counts."""

    dns: str | None = None
    ip: str | None = None


class PeerEndpoint(msgspec.Struct, frozen=True):
    """Of a Peer: where it receives packets."""

    dns_or_ip: DNSOrIP | None = msgspec.field(name="dnsOrIP", default=None)
    port: int | None = None


class PeerSpec(msgspec.Struct, frozen=True, rename="camel"):
    """Of a Peer, as its resource definition has it; texts are not yet checked."""

    allowed_ips: list[str] | None = msgspec.field(name="allowedIPs", default=None)
    endpoint: PeerEndpoint | None = None
    persistent_keepalive: int | None = None
    preshared_key: str | None = None
    public_key: str | None = None

    def __repr__(self) -> str:
        """Without the preshared key, which is a secret."""
        return f"PeerSpec(public_key={self.public_key!r}, allowed_ips={self.allowed_ips!r})"


class PeerObject(msgspec.Struct, frozen=True):
    """A Peer resource."""

    metadata: ObjectMeta
    spec: PeerSpec = PeerSpec()


class Status(msgspec.Struct, frozen=True):
    """What the API answers instead of what was asked for; ``code`` as in HTTP."""

    code: int = 0
    reason: str = ""
    message: str = ""


class ObjectList(msgspec.Struct, frozen=True):
    """A list whose items are not decoded yet. All of it must be there: an answer that is something else
    would say that there are no objects."""

    kind: str
    metadata: ListMeta
    items: list[msgspec.Raw]


class WatchEvent(msgspec.Struct, frozen=True):
    """One line of a watch. ``type``: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.

    ``object`` is for decode_node, decode_peer, decode_version (BOOKMARK) or decode_status (ERROR).
    """

    type: str
    object: msgspec.Raw


class NodeEvent(msgspec.Struct, frozen=True):
    """A WatchEvent whose object is a Node, decoded in one go."""

    type: str
    object: NodeObject


class PeerEvent(msgspec.Struct, frozen=True):
    """A WatchEvent whose object is a Peer, decoded in one go."""

    type: str
    object: PeerObject


class _Versioned(msgspec.Struct):
    metadata: ListMeta = ListMeta()


class _Name(msgspec.Struct):
    name: str = ""


class _Named(msgspec.Struct):
    metadata: _Name | None = None


T = TypeVar("T", NodeObject, PeerObject)
S = TypeVar("S")


@dataclass(frozen=True)
class DecodedList(Generic[T]):
    """The objects of a list, and those that did not decode."""

    items: list[T]
    metadata: ListMeta
    refused: list[MalformedObject]


NodeList = DecodedList[NodeObject]
PeerList = DecodedList[PeerObject]

_node = msgspec.json.Decoder(NodeObject)
_peer = msgspec.json.Decoder(PeerObject)
_list = msgspec.json.Decoder(ObjectList)
_event = msgspec.json.Decoder(WatchEvent)
_node_event = msgspec.json.Decoder(NodeEvent)
_peer_event = msgspec.json.Decoder(PeerEvent)
_status = msgspec.json.Decoder(Status)
_versioned = msgspec.json.Decoder(_Versioned)
_named = msgspec.json.Decoder(_Named)
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_PATH = re.compile(r"(.*?)(?: - at `(?:key in )?\$\.?(.*)`)?", re.DOTALL)


def decode_node(raw: bytes | msgspec.Raw) -> NodeObject:
    """One Node from its JSON. Raises MalformedObject."""
    return _decode(_node, NODE, raw)


def decode_peer(raw: bytes | msgspec.Raw) -> PeerObject:
    """One Peer from its JSON. Raises MalformedObject."""
    return _decode(_peer, PEER, raw)


def decode_nodes(raw: bytes) -> NodeList:
    """A page of Nodes. A Node that does not decode is in ``refused``. Raises ProtocolError."""
    return _decode_list(_node, NODE, raw)


def decode_peers(raw: bytes) -> PeerList:
    """A page of Peers. A Peer that does not decode is in ``refused``. Raises ProtocolError."""
    return _decode_list(_peer, PEER, raw)


def decode_event(raw: bytes) -> WatchEvent:
    """One line of a watch. Raises ProtocolError."""
    return _plain(_event, "watch event", raw)


def decode_node_event(raw: bytes) -> NodeEvent | None:
    """One line of a watch of Nodes, at half the cost; None if it is anything but a sound Node."""
    try:
        return _node_event.decode(raw)
    except _DECODE_ERRORS:
        return None


def decode_peer_event(raw: bytes) -> PeerEvent | None:
    """One line of a watch of Peers, as decode_node_event."""
    try:
        return _peer_event.decode(raw)
    except _DECODE_ERRORS:
        return None


def decode_status(raw: bytes | msgspec.Raw) -> Status:
    """The object of an ERROR event, or the body of an answer that is an error. Raises ProtocolError."""
    return _plain(_status, "Status", raw)


def decode_version(raw: bytes | msgspec.Raw) -> str:
    """The resourceVersion of any object, such as that of a BOOKMARK event. Raises ProtocolError."""
    return _plain(_versioned, "object", raw).metadata.resource_version


def _decode(decoder: msgspec.json.Decoder[T], kind: str, raw: bytes | msgspec.Raw) -> T:
    try:
        decoded = decoder.decode(raw)
    except _DECODE_ERRORS as e:
        field, reason = located(e)
        raise MalformedObject(kind, _name_of(raw), field, reason) from e
    if not decoded.metadata.name:
        raise MalformedObject(kind, "", "metadata.name", "is missing")
    return decoded


def _decode_list(decoder: msgspec.json.Decoder[T], kind: str, raw: bytes) -> DecodedList[T]:
    page = _plain(_list, f"{kind}List", raw)
    if page.kind != f"{kind}List":
        raise ProtocolError(f"{kind}List: the kind is {page.kind[:MAX_QUOTED]!r}")
    if not page.metadata.resource_version:
        raise ProtocolError(f"{kind}List: metadata.resourceVersion is missing")
    items: list[T] = []
    refused: list[MalformedObject] = []
    for item in page.items:
        try:
            items.append(_decode(decoder, kind, item))
        except MalformedObject as e:
            refused.append(e)
    return DecodedList(items, page.metadata, refused)


def _plain(decoder: msgspec.json.Decoder[S], what: str, raw: bytes | msgspec.Raw) -> S:
    try:
        return decoder.decode(raw)
    except _DECODE_ERRORS as e:
        field, reason = located(e)
        raise ProtocolError(f"{what}: {field + ': ' if field else ''}{reason}") from e


def _name_of(raw: bytes | msgspec.Raw) -> str:
    """The name of an object of which something else is malformed, "" if that is too."""
    try:
        metadata = _named.decode(raw).metadata
    except _DECODE_ERRORS:
        return ""
    return metadata.name if metadata else ""


def located(error: Exception) -> tuple[str, str]:
    """The dotted field ("" for the whole) and the reason of an error of msgspec, which quotes no values."""
    match = _PATH.fullmatch(str(error))
    if match is None:
        return "", "malformed"
    reason, field = match.group(1), match.group(2) or ""
    return field, reason if reason[1:2].isupper() else reason[:1].lower() + reason[1:]
