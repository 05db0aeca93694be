"""The request headers by which a user acts as another one (``as``), as the Go client sends them.

Pure; used by kilo.watcher.kubeconfig and access.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kilo.errors import ProtocolError

USER, UID, GROUP, EXTRA = "Impersonate-User", "Impersonate-Uid", "Impersonate-Group", "Impersonate-Extra-"
_TOKEN = frozenset(b"!#$&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""Bytes of a header's name that are not escaped (RFC 9110); ``%`` begins an escape."""


def headers_of(
    user: str, uid: str, groups: Sequence[str], extra: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, str], ...]:
    """Names and values; a name is repeated where it has several values. Empty without ``user``.

    Raises ProtocolError, which names the field.
    """
    if not user:
        for field, given in (("as-uid", uid), ("as-groups", groups), ("as-user-extra", extra)):
            if given:
                raise ProtocolError(
                    f"{field} is set and as is not: name the user to act as, or remove {field}"
                )
        return ()
    headers = [(USER, _value("as", user))]
    if uid:
        headers.append((UID, _value("as-uid", uid)))
    headers += [(GROUP, _value("as-groups", group)) for group in groups]
    for key, values in extra.items():
        headers += [(EXTRA + escaped(key), _value("as-user-extra", value)) for value in values]
    return tuple(headers)


def escaped(key: str) -> str:
    """``key`` as a part of a header's name: percent-encoded where it must be."""
    return "".join(chr(byte) if byte in _TOKEN else f"%{byte:02X}" for byte in _utf8("as-user-extra", key))


def _value(field: str, text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ProtocolError(f"{field} holds a control character")
    # http.client encodes a text as Latin-1, the server reads UTF-8.
    return _utf8(field, text).decode("latin-1")


def _utf8(field: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise ProtocolError(f"{field} holds half a character (a lone surrogate)") from e
