"""What the stand-in keeps: objects, each encoded once, and the history that watches read.

Plain state, one thread. An object is a JSON value of any shape below ``metadata.name``; the store
checks nothing else, so that a test can put garbage in.
"""

from __future__ import annotations

import base64
import builtins
import itertools
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.apiserver import patches

encode = msgspec.json.Encoder().encode
CRD = "peers.kilo.squat.ai"
SNAPSHOTS = 64


@dataclass(frozen=True)
class Kind:
    """A kind of object and where it is served."""

    name: str
    plural: str
    api_version: str
    path: str


NODES = Kind("Node", "nodes", "v1", "/api/v1/nodes")
PEERS = Kind("Peer", "peers", "kilo.squat.ai/v1alpha1", "/apis/kilo.squat.ai/v1alpha1/peers")
CRDS = Kind(
    "CustomResourceDefinition",
    "customresourcedefinitions",
    "apiextensions.k8s.io/v1",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
)
KINDS = (NODES, PEERS, CRDS)


class ApiStatus(Exception):
    """An answer that is an error: the HTTP status, the reason and the message of a Status object."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Stored:
    """One version of one object."""

    value: dict[str, Any]
    raw: bytes
    version: int


class History:
    """The newest changes of one kind, as chunks of a watch's body; older ones go when it grows too big."""

    def __init__(self, limit: int) -> None:
        self.oldest = 1
        """Changes after this version are still known."""
        self._limit = limit
        self._versions: deque[int] = deque()
        self._chunks: deque[bytes] = deque()
        self._bytes = 0

    def add(self, version: int, event: str, raw: bytes) -> None:
        line = b'{"type":"%s","object":%s}\n' % (event.encode(), raw)
        self._versions.append(version)
        self._chunks.append(b"%x\r\n%s\r\n" % (len(line), line))
        self._bytes += len(line)
        while self._bytes > self._limit and len(self._versions) > 1:
            self.oldest = self._versions.popleft()
            self._bytes -= len(self._chunks.popleft())

    def since(self, version: int) -> list[bytes]:
        """The chunks after ``version``. Raises ApiStatus 410 if they are not all known any more."""
        if version < self.oldest:
            raise ApiStatus(410, "Expired", f"too old resource version: {version} ({self.oldest})")
        if not self._versions or self._versions[-1] <= version:
            return []
        newer = itertools.takewhile(lambda v: v > version, reversed(self._versions))
        chunks = [chunk for _, chunk in zip(newer, reversed(self._chunks), strict=False)]
        chunks.reverse()
        return chunks

    def forget(self, version: int) -> None:
        """Nothing before ``version`` is known any more."""
        self.oldest, self._bytes = version, 0
        self._versions.clear()
        self._chunks.clear()


@dataclass(frozen=True)
class Page:
    """What one list request is answered with. ``token`` is "" on the last page."""

    items: list[bytes]
    version: int
    token: str
    remaining: int


class Store:
    """The objects of all kinds under one counter of versions, and the newest changes of each."""

    def __init__(self, crd: bool = True, history_bytes: int = 64 << 20) -> None:
        self.version = 1
        self._objects: dict[Kind, dict[str, Stored]] = {kind: {} for kind in KINDS}
        self._names: dict[Kind, list[str] | None] = dict.fromkeys(KINDS)
        self._history = {kind: History(history_bytes) for kind in KINDS}
        self._snapshots: dict[str, tuple[Kind, int, list[bytes]]] = {}
        self._tokens = itertools.count(1)
        if crd:
            self.create(CRDS, {"metadata": {"name": CRD}, "spec": {"group": "kilo.squat.ai"}})

    def served(self, kind: Kind) -> bool:
        """Whether the kind exists: peers do once their definition does."""
        return kind is not PEERS or CRD in self._objects[CRDS]

    def names(self, kind: Kind) -> list[str]:
        names = self._names[kind]
        if names is None:
            names = self._names[kind] = sorted(self._objects[kind])
        return names

    def get(self, kind: Kind, name: str) -> Stored:
        try:
            return self._objects[kind][name]
        except KeyError:
            raise ApiStatus(404, "NotFound", f'{kind.plural} "{name}" not found') from None

    def list(self, kind: Kind, limit: int = 0, token: str = "") -> Page:
        """A page of a list that is consistent over all its pages. Raises ApiStatus 410 for an old token."""
        if token:
            try:
                ident, _, start = base64.urlsafe_b64decode(token).decode().partition("/")
                version, items = self._snapshots[ident][1:]
                offset = int(start)
            except (ValueError, KeyError) as e:
                raise ApiStatus(410, "Expired", "The provided continue parameter is too old") from e
        else:
            objects = self._objects[kind]
            ident, version, offset = "", self.version, 0
            items = [objects[name].raw for name in self.names(kind)]
        if not limit or offset + limit >= len(items):
            return Page(items[offset:], version, "", 0)
        if not ident:
            ident = str(next(self._tokens))
            self._snapshots[ident] = (kind, version, items)
            if len(self._snapshots) > SNAPSHOTS:
                del self._snapshots[next(iter(self._snapshots))]
        end = offset + limit
        following = base64.urlsafe_b64encode(f"{ident}/{end}".encode()).decode()
        return Page(items[offset:end], version, following, len(items) - end)

    def create(self, kind: Kind, value: dict[str, Any]) -> Stored:
        """Raises ApiStatus 409 if there is one of that name, 422 if it has none."""
        metadata = value.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not isinstance(metadata, dict) or not isinstance(name, str) or not name:
            raise ApiStatus(422, "Invalid", f"{kind.name}: metadata.name: Required value")
        if name in self._objects[kind]:
            raise ApiStatus(409, "AlreadyExists", f'{kind.plural} "{name}" already exists')
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        metadata = {"uid": str(uuid.uuid4()), "creationTimestamp": created, **metadata}
        self._names[kind] = None
        return self._put(kind, name, {**value, "metadata": metadata}, "ADDED")

    def update(self, kind: Kind, name: str, value: dict[str, Any]) -> Stored:
        """Raises ApiStatus 404, or 409 if ``value`` names another version than the current one."""
        old = self.get(kind, name)
        metadata = value.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        if metadata.get("resourceVersion") not in (None, "", str(old.version)):
            raise ApiStatus(409, "Conflict", f'Operation cannot be fulfilled on {kind.plural} "{name}"')
        kept = {k: old.value["metadata"].get(k) for k in ("name", "uid", "creationTimestamp")}
        return self._put(kind, name, {**value, "metadata": {**metadata, **kept}}, "MODIFIED")

    def patch(self, kind: Kind, name: str, content_type: str, patch: Any) -> Stored:
        """Raises ApiStatus. A patch that changes nothing makes no new version, as in the real one."""
        old = self.get(kind, name)
        try:
            value = patches.apply(content_type, old.value, patch)
        except patches.PatchError as e:
            reasons = {400: "BadRequest", 415: "UnsupportedMediaType"}
            raise ApiStatus(e.status, reasons.get(e.status, "Invalid"), str(e)) from e
        return old if value == old.value else self.update(kind, name, value)

    def delete(self, kind: Kind, name: str) -> Stored:
        """Raises ApiStatus 404. The definition of peers takes all peers with it."""
        old = self.get(kind, name)
        if kind is CRDS and name == CRD:
            for peer in list(self._objects[PEERS]):
                self.delete(PEERS, peer)
        del self._objects[kind][name]
        self._names[kind] = None
        return self._put(kind, name, old.value, "DELETED")

    def compact(self) -> None:
        """Forget the history and the pages under way: what asks for them is answered 410."""
        self._snapshots.clear()
        for history in self._history.values():
            history.forget(self.version)

    def since(self, kind: Kind, version: int) -> builtins.list[bytes]:
        """What a watch of ``kind`` is sent after ``version``. Raises ApiStatus 410."""
        return self._history[kind].since(version)

    def dump(self) -> bytes:
        """Everything but the history."""
        state = {kind.plural: [s.value for s in self._objects[kind].values()] for kind in KINDS}
        return encode({"version": self.version, **state})

    def load(self, data: bytes) -> None:
        """Take over what ``dump`` gave, versions included."""
        state = msgspec.json.decode(data)
        self.version = state["version"]
        for kind in KINDS:
            self._names[kind] = None
            self._objects[kind] = {
                value["metadata"]["name"]: Stored(
                    value, encode(value), int(value["metadata"]["resourceVersion"])
                )
                for value in state[kind.plural]
            }
        self.compact()

    def _put(self, kind: Kind, name: str, value: dict[str, Any], event: str) -> Stored:
        self.version += 1
        metadata = {**value["metadata"], "resourceVersion": str(self.version)}
        value = {"kind": kind.name, "apiVersion": kind.api_version, **value, "metadata": metadata}
        stored = Stored(value, encode(value), self.version)
        if event != "DELETED":
            self._objects[kind][name] = stored
        self._history[kind].add(self.version, event, stored.raw)
        return stored
