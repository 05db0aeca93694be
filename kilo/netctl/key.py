"""The node's private key: the one secret of the host, which never leaves this process but for the device.

``STATE_DIR/key`` holds it as base64, mode 0600, the Go agent's place and form. If there is no such
file, the interface's key is written there, so that the node stays who it is; if there is no interface
either, a new one is made. One that cannot be used is an error for a person, and is never replaced.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from kilo.errors import PermanentError, ProtocolError
from kilo.log import Logger
from kilo.model.keys import canonical_key
from kilo.netctl.x25519 import public_key

_LARGEST = 1024


class PrivateKey:
    """A private key. Prints as ``***`` everywhere; ``reveal`` is for the device alone."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def reveal(self) -> bytes:
        """The 32 bytes."""
        return self._raw

    def public(self) -> str:
        """The public key, in base64."""
        return base64.b64encode(public_key(self._raw)).decode()

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrivateKey) and clamp(self._raw) == clamp(other._raw)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> str:
        raise TypeError("a private key is not sent anywhere")


def clamp(raw: bytes) -> bytes:
    """The key as Curve25519 uses it: devices keep it in this form."""
    return bytes([raw[0] & 248]) + raw[1:31] + bytes([raw[31] & 127 | 64])


def load_or_create(state_dir: str, held: Callable[[], PrivateKey | None], log: Logger) -> PrivateKey:
    """The key of this host. Raises PermanentError, naming the file, if it cannot be had.

    ``held`` is asked, where there is no file, for the key that the WireGuard interface has; it raises
    TemporaryError if that cannot be said.
    """
    path = path_in(state_dir)
    key = load(path)
    if key is not None:
        return key
    found = held()
    key = found or new_key()
    try:
        _write(path, base64.b64encode(key.reveal()))
    except OSError as e:
        raise PermanentError(f"cannot write the private key {path}: {e.strerror}") from e
    if found is not None:
        log.warn(
            "the file of the private key was gone; written again with the interface's key", file=str(path)
        )
    return key


def path_in(state_dir: str) -> Path:
    """Where the key of this host is."""
    return Path(state_dir) / "key"


def load(path: Path) -> PrivateKey | None:
    """The key in a file, None if there is no such file. Raises PermanentError as ``load_or_create``."""
    try:
        with path.open("rb") as f:
            return _parse(path, f.read(_LARGEST))
    except FileNotFoundError:
        return None
    except OSError as e:
        raise PermanentError(f"cannot read the private key {path}: {e.strerror}") from e


def new_key() -> PrivateKey:
    """A key that nobody has."""
    return PrivateKey(clamp(secrets.token_bytes(32)))


def _parse(path: Path, content: bytes) -> PrivateKey:
    try:
        raw = base64.b64decode(canonical_key(content.decode("ascii").strip()))
    except (ProtocolError, UnicodeDecodeError) as e:
        why = str(e) if isinstance(e, ProtocolError) else "not base64"
        raise PermanentError(
            f"the private key {path} is damaged: {why}. Restore it, or remove it to get a new one"
        ) from e
    if not any(raw):
        raise PermanentError(f"the private key {path} is damaged: all zero. Restore it, or remove it")
    return PrivateKey(raw)


def _write(path: Path, content: bytes) -> None:
    """Write by rename, so that there is never half a key, and no key before it is on the disk."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
