"""Between Kubernetes objects and the model: what every Go agent reads, read the same way, and written back.

Pure. What is malformed is left out as the Go agent leaves it out, but never silently: each reading
carries its problems, as the field's name and the reason. Fields are named by annotation, without
the prefix, or as a path such as ``spec.podCIDR``. Used by the watcher and by ``kg plan``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kilo.errors import ProtocolError
from kilo.model.keys import ZERO, PresharedKey, canonical_key
from kilo.model.net import canonical_interface, canonical_network, parse_ip
from kilo.model.node import GRANULARITIES, Announcement, Endpoint, Node, Peer, UDPAddress
from kilo.watcher.objects import NodeObject, PeerEndpoint, PeerObject
from kilo.watcher.syntax import (
    discovered_endpoints,
    endpoint,
    integer,
    is_dns_name,
    unix_time,
    whole_seconds,
)

PREFIX = "kilo.squat.ai/"
LAST_SEEN = PREFIX + "last-seen"
CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
CHECKED_IN_WITHIN = 60
"""Seconds; a node whose last-seen is that old, or older, takes no part in the mesh of a Go agent."""

MOST_NAMED = 10
MAX_KEEPALIVE = 65535
"""Seconds; WireGuard keeps 16 bits of it."""

NO_POD_CIDR = (
    "the node has no pod CIDR, and its agent announces nothing until it has one; the controller manager "
    "gives it one with --allocate-node-cidrs"
)

ANNOTATIONS_TO_REMOVE = tuple(
    PREFIX + name
    for name in (
        "endpoint",
        "internal-ip",
        "key",
        "last-seen",
        "wireguard-ip",
        "discovered-endpoints",
        "granularity",
        "cni-compatibility-ip",
    )
)
"""What an agent takes from its node at a clean shutdown: all that annotations_of sets."""


class FieldProblem(NamedTuple):
    """What is wrong with one field of an object."""

    field: str
    reason: str

    @property
    def place(self) -> str:
        """Where to look: the annotation in full, or the path of the field."""
        return self.field if self.field.startswith("spec.") else f"annotation {PREFIX}{self.field}"


@dataclass(frozen=True)
class NodeReading:
    """A Node as read. ``last_seen`` in Unix s, 0 for never; ``problems`` names what was left out."""

    node: Node
    last_seen: int
    problems: tuple[FieldProblem, ...] = ()


@dataclass(frozen=True)
class PeerReading:
    """A Peer as read; ``peer`` is None where it fails validation, and takes no part at all.

    ``problems``: the reason of that, or what was left out.
    """

    name: str
    peer: Peer | None
    problems: tuple[FieldProblem, ...] = ()


class _Annotations:
    """The annotations of one node, and the problems met while reading them."""

    def __init__(self, annotations: Mapping[str, str]) -> None:
        self._annotations = annotations
        self.problems: list[FieldProblem] = []

    def get(self, name: str) -> str | None:
        return self._annotations.get(PREFIX + name)

    def problem(self, name: str, reason: str) -> None:
        self.problems.append(FieldProblem(name, reason))

    def endpoint(self, name: str) -> Endpoint | None:
        text = self.get(name)
        if not text:
            return None
        try:
            return endpoint(text)
        except ProtocolError as e:
            self.problem(name, str(e))
            return None

    def interface(self, name: str) -> str:
        text = self.get(name)
        return self._interface(name, text) if text else ""

    def interfaces(self, name: str) -> tuple[str, ...]:
        text = self.get(name)
        if not text:
            return ()
        found, reasons = _interfaces(text.split(","))
        if reasons:
            self.problem(name, reasons)
        return found

    def _interface(self, name: str, text: str) -> str:
        found, reasons = _interfaces((text,))
        if reasons:
            self.problem(name, reasons)
        return found[0] if found else ""

    def integer(self, name: str) -> int:
        text = self.get(name)
        if text is None:
            return 0
        value, reason = integer(text)
        if reason:
            self.problem(name, reason)
        return value

    def keepalive(self) -> int:
        name = "persistent-keepalive"
        seconds = self.integer(name)
        if not 0 <= seconds <= MAX_KEEPALIVE:
            self.problem(name, f"{seconds} s is not one of 0 to {MAX_KEEPALIVE}")
        return whole_seconds(seconds)

    def key(self) -> str:
        text = self.get("key")
        if not text:
            return ""
        try:
            key = canonical_key(text)
        except ProtocolError as e:
            self.problem("key", str(e))
            return ""
        return "" if key == ZERO else key

    def discovered(self) -> dict[str, UDPAddress | None]:
        name = "discovered-endpoints"
        text = self.get(name)
        if not text:
            return {}
        try:
            return discovered_endpoints(text)
        except ProtocolError as e:
            self.problem(name, str(e))
            return {}

    def granularity(self) -> str:
        text = self.get("granularity")
        if not text or text in GRANULARITIES:
            return text or ""
        self.problem("granularity", f"{text!r} is not one of {', '.join(GRANULARITIES)}")
        return ""


def _interfaces(texts: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """Those of ``texts`` that the Go agent reads (Interface form), and what is wrong with all the others.

    It reads none with blanks around it, so neither may this agent.
    """
    found, reasons = [], []
    for text in texts:
        try:
            found.append(canonical_interface(text))
        except ProtocolError as e:
            blanks = " (write it without blanks)" if text != text.strip() and text.strip() else ""
            reasons.append(f"{e}{blanks}")
    more = len(reasons) - MOST_NAMED
    if more > 0:
        reasons[MOST_NAMED:] = [f"and {more} more"]
    return tuple(found), "; ".join(reasons)


def node_from(obj: NodeObject, topology_label: str) -> NodeReading:
    """A Node of the mesh from a Node of the cluster. Never raises: what is malformed is left out."""
    read = _Annotations(obj.annotations)
    location = read.get("location")
    forced_endpoint = read.endpoint("force-endpoint")
    no_internal_ip = read.get("force-internal-ip") in ("", "-")
    forced_internal_ip = "" if no_internal_ip else read.interface("force-internal-ip")
    node = Node(
        name=obj.metadata.name,
        key=read.key(),
        endpoint=forced_endpoint or read.endpoint("endpoint"),
        forced_endpoint=forced_endpoint is not None,
        internal_ip="" if no_internal_ip else forced_internal_ip or read.interface("internal-ip"),
        no_internal_ip=no_internal_ip,
        forced_internal_ip=bool(forced_internal_ip),
        cni_compatibility_ip=read.interface("cni-compatibility-ip"),
        leader=read.get("leader") is not None,
        location=obj.labels.get(topology_label, "") if location is None else location,
        persistent_keepalive=read.keepalive(),
        subnet=_pod_cidr(obj, read),
        wireguard_ip=read.interface("wireguard-ip"),
        discovered_endpoints=read.discovered(),
        allowed_location_ips=read.interfaces("allowed-location-ips"),
        granularity=read.granularity(),
        control_plane=is_control_plane(obj),
        created=unix_time(obj.metadata.creation_timestamp),
    )
    last_seen = read.integer("last-seen")
    if any(problem.field == "last-seen" for problem in read.problems):
        last_seen = 0
    return NodeReading(node, last_seen, tuple(read.problems))


def is_control_plane(obj: NodeObject) -> bool:
    """Whether the API server may run on this node, by its labels."""
    return any(label in obj.labels for label in CONTROL_PLANE)


def _pod_cidr(obj: NodeObject, read: _Annotations) -> str:
    if not obj.pod_cidr:
        return ""
    try:
        return canonical_network(obj.pod_cidr)
    except ProtocolError as e:
        read.problem("spec.podCIDR", str(e))
        return ""


def is_alive(last_seen: int, now: int) -> bool:
    """Whether a node that checked in at ``last_seen`` still counts at ``now`` (both Unix s)."""
    return now - last_seen < CHECKED_IN_WITHIN


def not_ready_reason(
    node: Node, alive: bool, problems: Iterable[FieldProblem] = (), checked_in: int = 0
) -> FieldProblem | None:
    """Why ``node`` takes no part in the mesh, None if it does.

    ``problems``: of its reading; they give the reason where a field is malformed and not just missing.
    ``checked_in``: Unix s of the last check-in, 0 for none.
    """
    reasons = dict(problems)
    if not node.subnet:
        # First, since without a pod CIDR the node's agent announces neither endpoint nor key.
        return FieldProblem("spec.podCIDR", reasons.get("spec.podCIDR", NO_POD_CIDR))
    if node.endpoint is None:
        if "endpoint" not in reasons and "force-endpoint" in reasons:
            return FieldProblem("force-endpoint", reasons["force-endpoint"])
        return FieldProblem("endpoint", reasons.get("endpoint", "is not set; does an agent run there?"))
    if not node.key:
        return FieldProblem("key", reasons.get("key", "is not set; does an agent run there?"))
    if not alive:
        return FieldProblem("last-seen", reasons.get("last-seen", _not_checked_in(checked_in)))
    return None


def _not_checked_in(checked_in: int) -> str:
    """The reason of a node that is not alive. The time and not the age: the same problem keeps its text."""
    if not checked_in:
        return "is not set; does an agent run there?"
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(checked_in))
    return f"the node has not checked in since {at}"


def peer_from(obj: PeerObject) -> PeerReading:
    """A Peer of the mesh from a Peer resource, validated as every agent validates it. Never raises."""
    name, spec = obj.metadata.name, obj.spec
    try:
        field = "spec.allowedIPs"
        allowed_ips, reasons = _interfaces(spec.allowed_ips or ())
        if reasons:
            raise ProtocolError(reasons)
        field = "spec.endpoint"
        where = _peer_endpoint(spec.endpoint) if spec.endpoint else None
        field = "spec.persistentKeepalive"
        seconds = spec.persistent_keepalive or 0
        if seconds < 0:
            raise ProtocolError(f"{seconds} is below 0")
        field = "spec.publicKey"
        key = canonical_key(spec.public_key or "")
    except ProtocolError as e:
        return PeerReading(name, None, (FieldProblem(field, str(e)),))
    secret, problems = _preshared_key(spec.preshared_key or "")
    keepalive = seconds if seconds <= MAX_KEEPALIVE else 0
    if seconds > MAX_KEEPALIVE:
        reason = f"{seconds} s is not one of 0 to {MAX_KEEPALIVE}; the Peer is used without a keepalive"
        problems = (*problems, FieldProblem("spec.persistentKeepalive", reason))
    created = unix_time(obj.metadata.creation_timestamp)
    return PeerReading(name, Peer(name, key, allowed_ips, where, keepalive, secret, created), problems)


def _peer_endpoint(given: PeerEndpoint) -> Endpoint:
    """Raises ProtocolError."""
    dns = (given.dns_or_ip.dns if given.dns_or_ip else None) or ""
    ip = (given.dns_or_ip.ip if given.dns_or_ip else None) or ""
    port = given.port or 0
    if not dns and not ip:
        raise ProtocolError("has neither a DNS name nor an address")
    if dns and not is_dns_name(dns):
        raise ProtocolError(f"{dns!r} is not a DNS name")
    address = str(parse_ip(ip)) if ip else ""
    if not 1 <= port <= 65535:
        raise ProtocolError(f"port {port} is not one of 1 to 65535")
    return endpoint(f"{dns}:{port}") if dns else Endpoint(address, port, address)


def _preshared_key(text: str) -> tuple[PresharedKey | None, tuple[FieldProblem, ...]]:
    if not text:
        return None, ()
    try:
        key = canonical_key(text)
    except ProtocolError as e:
        return None, (FieldProblem("spec.presharedKey", f"{e}; the Peer is used without one"),)
    return (None if key == ZERO else PresharedKey(key)), ()


def peer_not_ready_reason(peer: Peer) -> FieldProblem | None:
    """Why a valid Peer takes no part in the mesh, None if it does."""
    if not peer.allowed_ips:
        return FieldProblem("spec.allowedIPs", "is empty")
    if peer.public_key == ZERO:
        return FieldProblem("spec.publicKey", "is all zeros")
    return None


def annotations_of(announcement: Announcement, last_seen: int) -> dict[str, str]:
    """The annotations that say ``announcement``, byte for byte as a Go agent writes them.

    ``last_seen``: Unix s. Where there is nothing to say the annotation is there and empty.
    """
    values = {
        "endpoint": str(announcement.endpoint) if announcement.endpoint else "",
        "internal-ip": announcement.internal_ip,
        "key": announcement.key,
        "last-seen": str(last_seen),
        "wireguard-ip": announcement.wireguard_ip,
        "discovered-endpoints": _discovered_json(announcement.discovered_endpoints),
        "granularity": announcement.granularity,
        "cni-compatibility-ip": announcement.cni_compatibility_ip,
    }
    return {PREFIX + name: value for name, value in values.items()}


def _discovered_json(endpoints: Mapping[str, UDPAddress]) -> str:
    ordered = {
        key: {"IP": address.ip, "Port": address.port, "Zone": address.zone}
        for key, address in sorted(endpoints.items())
    }
    return json.dumps(ordered, separators=(",", ":"))
