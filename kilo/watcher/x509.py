"""What a certificate says of itself, as much as an error message needs: names and dates. Pure.

Python shows the fields of a certificate only after it has verified it; this is for those that are refused.
What is read here decides nothing. Used by kilo.watcher.identity, reasons and session.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address

from kilo.errors import ProtocolError

_UTC_TIME, _TIME, _VERSION, _EXTENSIONS, _DNS, _IP = 0x17, 0x18, 0xA0, 0xA3, 0x82, 0x87
_COMMON_NAME, _ORGANISATION, _ALTERNATIVE_NAMES = b"\x55\x04\x03", b"\x55\x04\x0a", b"\x55\x1d\x11"
_SHOWN = 80


@dataclass(frozen=True)
class Certificate:
    """``names``: what it is for, such as ``DNS:kubernetes``; dates in Unix s."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    begins: float
    ends: float


def decode_certificate(der: bytes) -> Certificate:
    """Raises ProtocolError."""
    try:
        (_, whole), *_ = _children(der)
        (_, body), *_ = _children(whole)
        return _certificate([field for field in _children(body) if field[0] != _VERSION])
    except (IndexError, ValueError, OverflowError) as e:
        raise ProtocolError("it is not a certificate") from e


def decode_pem(pem: bytes) -> Certificate:
    """The first certificate of a PEM. Raises ProtocolError."""
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    block = pem.partition(begin)[2].partition(end)[0]
    try:
        return decode_certificate(ssl.PEM_cert_to_DER_cert((begin + block + end).decode()))
    except ValueError as e:
        raise ProtocolError("it is not a certificate") from e


def shown_time(seconds: float) -> str:
    """For a person."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _certificate(fields: list[tuple[int, bytes]]) -> Certificate:
    """From the fields of its body, without that of its version: the first two are of no interest."""
    issuer, validity, subject = (value for _, value in fields[2:5])
    begins, ends = (_moment(*part) for part in _children(validity))
    extensions = next((value for tag, value in fields[5:] if tag == _EXTENSIONS), b"")
    return Certificate(_name(subject), _name(issuer), tuple(_names(extensions)), begins, ends)


def _children(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each DER value in a row. Raises IndexError, ValueError."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size])
            at += size
        if at + length > len(data):
            raise ValueError("cut off")
        yield tag, data[at : at + length]
        at += length


def _name(name: bytes) -> str:
    """The common name, else the organisation, else nothing."""
    found: dict[bytes, str] = {}
    for _, group in _children(name):
        for _, pair in _children(group):
            (_, kind), (_, text), *_ = _children(pair)
            found.setdefault(kind, _text(text))
    return found.get(_COMMON_NAME) or found.get(_ORGANISATION, "")


def _text(content: bytes) -> str:
    """What the other side chose, fit for a log."""
    text = content[:_SHOWN].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def _names(extensions: bytes) -> Iterator[str]:
    for _, items in _children(extensions):
        for _, extension in _children(items):
            (_, kind), *_, (_, value) = _children(extension)
            if kind == _ALTERNATIVE_NAMES:
                for _, names in _children(value):
                    for tag, name in _children(names):
                        if tag == _DNS:
                            yield f"DNS:{_text(name)}"
                        elif tag == _IP:
                            yield f"IP:{ip_address(name)}"


def _moment(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # two digits for the year, from 1950 to 2049
        text = ("20" if text < "50" else "19") + text
    elif tag != _TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
