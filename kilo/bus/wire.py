"""What passes on the bus: two parts a message, the topic's name and a Frame in MessagePack."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, Literal, TypeVar

import msgspec

from kilo.model.keys import PresharedKey, canonical_key

VERSION = 1
MAX_MESSAGE = 64 << 20
"""Bytes; a peer that sends more is cut off by the socket before the message is in memory."""

MAX_STATE = 256 << 10
"""The same for what a worker says of itself."""

T = TypeVar("T")


class Frame(msgspec.Struct, Generic[T], frozen=True, array_like=True):
    """Either the whole of a topic (``snapshot``) or what changed since frame ``seq`` - 1.

    ``epoch`` tells one life of the producer from the next. A ``beacon`` repeats the newest
    position and carries nothing, so that a subscriber who missed the last change finds out.
    """

    version: int
    kind: Literal["snapshot", "delta", "beacon"]
    epoch: str
    seq: int
    upserts: dict[str, T]
    removals: list[str]


def _out(value: object) -> object:
    if isinstance(value, PresharedKey):
        return value.value
    raise NotImplementedError(type(value).__name__)


def _without(value: object) -> object:
    if isinstance(value, PresharedKey):
        return ""
    raise NotImplementedError(type(value).__name__)


def hook(kind: type, value: object) -> object:
    """How the types that msgspec does not know are read from the wire."""
    if kind is PresharedKey and isinstance(value, str):
        return PresharedKey(canonical_key(value) if value else "")
    raise NotImplementedError(kind.__name__)


encode_without_secrets = msgspec.msgpack.Encoder(enc_hook=_without).encode
"""For those who may know that there is a secret, and not what it is. No key: who were to use it, notices."""
encode = msgspec.msgpack.Encoder(enc_hook=_out).encode


def endpoint(run_dir: str, worker: str) -> str:
    """The ZeroMQ endpoint on which ``worker`` publishes."""
    return f"ipc://{socket_path(run_dir, worker)}"


def socket_path(run_dir: str, worker: str) -> Path:
    """The socket's file, in a directory that only ``worker`` may write."""
    return Path(run_dir) / worker / "bus.sock"
