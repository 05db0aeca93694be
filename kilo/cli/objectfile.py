"""Kubernetes objects from a file, as ``kubectl get -o json`` prints them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from kilo.errors import ProtocolError
from kilo.watcher.objects import MalformedObject

T = TypeVar("T")


class _Kind(msgspec.Struct):
    kind: str | None = None


class _Document(msgspec.Struct):
    kind: str | None = None
    items: list[msgspec.Raw] | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"")


@dataclass(frozen=True)
class Objects(Generic[T]):
    """The objects of a file, and those that are of the right kind but malformed."""

    objects: list[T] = field(default_factory=list)
    refused: list[MalformedObject] = field(default_factory=list)


def read_objects(path: str, flag: str, kind: str, decode: Callable[[msgspec.Raw], T]) -> Objects[T]:
    """The objects in ``path`` ("-": standard input): a List, an array of some, or a single object. Nothing is
    an empty List, which has a kind, and not ``[]`` or ``{}``: a file that went wrong is no empty cluster.

    ``flag`` is named in errors. Raises ProtocolError if the file cannot be read, is not JSON, or
    holds something that is not of ``kind``.
    """
    source = f"{flag} {path}"
    found: Objects[T] = Objects()
    for number, raw in enumerate(_items(_bytes(path, source), source, kind), 1):
        given = _kind_of(raw, f"{source}: item {number}")
        if given not in ("", kind):
            hint = f"it takes what kubectl get {kind.lower()}s -o json prints"
            raise ProtocolError(f"{source}: item {number} is a {given}, not a {kind}; {hint}")
        try:
            found.objects.append(decode(raw))
        except MalformedObject as e:
            found.refused.append(e)
    return found


def _bytes(path: str, source: str) -> bytes:
    try:
        if path == "-":
            if sys.stdin is None:
                raise ProtocolError(f"{source}: standard input is closed")
            return sys.stdin.buffer.read()
        with open(path, "rb") as f:
            return f.read()
    except OSError as e:
        raise ProtocolError(f"{source}: {e.strerror}") from e


def _items(content: bytes, source: str, kind: str) -> list[msgspec.Raw]:
    content = content.removeprefix(b"\xef\xbb\xbf").strip()
    hint = f"it takes what kubectl get {kind.lower()}s -o json prints"
    try:
        if content.startswith(b"["):
            items = msgspec.json.decode(content, type=list[msgspec.Raw])
            if not items:
                raise ProtocolError(f"{source} is an empty array, and no List of {kind}s; {hint}")
            return items
        document = msgspec.json.decode(content, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolError(f"{source} is not a JSON list of {kind}s: {e}; {hint}") from e
    if (document.kind or "").endswith("List") and document.kind not in ("List", f"{kind}List"):
        raise ProtocolError(f"{source} is a {document.kind}, not a List of {kind}s; {hint}")
    if document.items is not None:
        return document.items
    if (document.kind or "").endswith("List"):
        return []
    if document.kind is None and not document.metadata:
        raise ProtocolError(f"{source} is neither a List nor a {kind}; {hint}")
    return [msgspec.Raw(content)]


def _kind_of(raw: msgspec.Raw, where: str) -> str:
    try:
        return msgspec.json.decode(raw, type=_Kind).kind or ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolError(f"{where} is not an object: {e}") from e
