"""How the texts of annotations and Peers are read: exactly as every Go agent of the mesh reads them.

A text that one agent takes and another refuses would give the two different topologies, so the
oddities are part of the contract: ``+5`` is a number, a number that is too large counts as the
largest, ``10.0.0.256:1`` names a host. Pure; used by kilo.watcher.translate.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from kilo.errors import ProtocolError
from kilo.model.net import parse_ip
from kilo.model.node import Endpoint, UDPAddress

INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)
NANOSECONDS = 10**9
MAX_NAME = 253
_INTEGER = re.compile(r"[+-]?[0-9]+")
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")


def integer(text: str) -> tuple[int, str]:
    """An int64 and "", or what the Go agent takes in its stead and what is wrong with the text."""
    if not _INTEGER.fullmatch(text):
        return 0, f"{text!r} is not a whole number"
    digits = text.lstrip("+-").lstrip("0")
    if len(digits) <= 19:
        value = int(digits or "0") * (-1 if text[0] == "-" else 1)
        if INT64_MIN <= value <= INT64_MAX:
            return value, ""
    return (INT64_MIN if text[0] == "-" else INT64_MAX), f"{text!r} is too large"


def whole_seconds(seconds: int) -> int:
    """Seconds as they come out of Go's time.Duration, an int64 of nanoseconds that overflows silently.

    An overflow that leaves less than a second counts as none.
    """
    nanoseconds = (seconds * NANOSECONDS - INT64_MIN) % (1 << 64) + INT64_MIN
    return abs(nanoseconds) // NANOSECONDS * (-1 if nanoseconds < 0 else 1)


def unix_time(timestamp: str | None) -> int:
    """Unix s of a Kubernetes timestamp (RFC 3339), 0 of what is none."""
    try:
        moment = datetime.fromisoformat(timestamp or "")
    except ValueError:
        return 0
    return max(0, int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()))


def is_dns_name(text: str) -> bool:
    """Whether ``text`` is a lower-case DNS name as Kubernetes defines one (RFC 1123 subdomain)."""
    return len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None


def endpoint(text: str) -> Endpoint:
    """``address:port``, ``[address]:port`` or ``name:port``. Raises ProtocolError."""
    host, port_text = _split_host_port(text)
    if not re.fullmatch("[0-9]+", port_text):
        raise ProtocolError(f"{text!r}: the port is not a number")
    digits = port_text.lstrip("0")
    if not digits or len(digits) > 5 or int(digits) > 65535:
        raise ProtocolError(f"{text!r}: the port is not one of 1 to 65535")
    port = int(digits)
    try:
        ip = str(parse_ip(host))
    except ProtocolError:
        if not is_dns_name(host):
            raise ProtocolError(f"{text!r}: the host is neither an address nor a DNS name") from None
        return Endpoint(host, port)
    return Endpoint(ip, port, ip)


def _split_host_port(text: str) -> tuple[str, str]:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ProtocolError(f"{text!r} has no port")
    if host.startswith("["):
        inner, bracket, rest = host[1:].partition("]")
        if not bracket or rest or "[" in inner + port or "]" in port:
            raise ProtocolError(f"{text!r} is not [address]:port")
        return inner, port
    if ":" in host:
        raise ProtocolError(f"{text!r} has too many colons; an IPv6 address needs brackets")
    if "[" in text or "]" in text:
        raise ProtocolError(f"{text!r} has a bracket in a wrong place")
    return host, port


class _Object(list[tuple[str, Any]]):
    """A JSON object, with doubled names kept, in order."""


def _no_constant(text: str) -> Any:
    raise ValueError(text)


_json = json.JSONDecoder(object_pairs_hook=_Object, parse_constant=_no_constant)


def discovered_endpoints(text: str) -> dict[str, UDPAddress | None]:
    """The JSON of the discovered-endpoints annotation: public key to net.UDPAddr or null.

    Names of fields count in any case, unknown ones are passed over, ``null`` leaves a field empty.
    Raises ProtocolError, and then none of the entries count, as in the Go agent.
    """
    try:
        value = _json.decode(text)
    except (ValueError, RecursionError) as e:
        raise ProtocolError("is not JSON") from e
    if value is None:
        return {}
    if not isinstance(value, _Object):
        raise ProtocolError("is not a JSON object")
    return {_clean(key): _udp_address(entry) for key, entry in value}


def _udp_address(entry: object) -> UDPAddress | None:
    if entry is None:
        return None
    if not isinstance(entry, _Object):
        raise ProtocolError("has an entry that is not an object")
    ip, port, zone = "", 0, ""
    for name, value in entry:
        if value is None:
            continue
        match name.lower():
            case "ip":
                ip = _ip(value)
            case "port":
                port = _port(value)
            case "zone":
                zone = _text(value, "Zone")
    return UDPAddress(ip, port, zone)


def _ip(value: object) -> str:
    text = _text(value, "IP")
    return str(parse_ip(text)) if text else ""


def _port(value: object) -> int:
    if type(value) is not int or not INT64_MIN <= value <= INT64_MAX:
        raise ProtocolError("has a Port that is not a whole number")
    return value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"has a field {field} that is not a string")
    return _clean(value)


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can express and UTF-8 cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
