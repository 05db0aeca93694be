"""Addresses and networks as canonical text, and the few questions that are asked of them.

Addresses travel and are compared as the text that Go's ``net.IP`` and ``net.IPNet`` print, since
the order of that text decides how a mesh with Go agents in it is laid out. Parsing is cached:
the same few thousand texts are asked about again and again.

Three forms occur, all ``str``:

* ``IP``: ``10.0.0.1``, ``fd00::1``;
* ``Network``: ``10.2.0.0/24``, no host bits;
* ``Interface``: ``10.1.0.10/24``, an address with the length of its prefix.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from kilo.errors import ProtocolError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_CACHE = 1 << 16

PRIVATE_V4 = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
PRIVATE_V6 = "fd00::/16"


@lru_cache(_CACHE)
def parse_ip(text: str) -> Address:
    """Parse an address; an IPv4-mapped IPv6 address becomes IPv4, as in Go.

    Raises ProtocolError if ``text`` is not an address (zones are refused).
    """
    try:
        ip = ipaddress.ip_address(text)
    except ValueError as e:
        raise ProtocolError(f"{text!r} is not an IP address") from e
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            raise ProtocolError(f"{text!r} has a zone")
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
    return ip


@lru_cache(_CACHE)
def parse_interface(text: str) -> tuple[Address, int]:
    """Parse ``address/length`` into the address, host bits kept, and the length in bits.

    Raises ProtocolError where Go's ``net.ParseCIDR`` fails.
    """
    address, slash, length = text.partition("/")
    if not slash or not length.isascii() or not length.isdigit() or len(length.lstrip("0")) > 3:
        raise ProtocolError(f"{text!r} is not in CIDR notation")
    try:
        ip = ipaddress.ip_address(address)
    except ValueError as e:
        raise ProtocolError(f"{text!r} is not in CIDR notation") from e
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id is not None:
        raise ProtocolError(f"{text!r} has a zone")
    bits = int(length)
    if bits > ip.max_prefixlen:
        raise ProtocolError(f"{text!r} has a prefix longer than {ip.max_prefixlen} bits")
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        if bits < 96:
            raise ProtocolError(f"{text!r} mixes an IPv4 address with an IPv6 prefix")
        return ip.ipv4_mapped, bits - 96
    return ip, bits


@lru_cache(_CACHE)
def bounds(network: str) -> tuple[int, int, int]:
    """IP version (4 or 6), first and last address as integers, of a network or interface text."""
    ip, bits = parse_interface(network)
    host = ip.max_prefixlen - bits
    first = int(ip) >> host << host
    return ip.version, first, first + (1 << host) - 1


@lru_cache(_CACHE)
def ip_of(interface: str) -> str:
    """The address of ``address/length``, canonical."""
    return str(parse_interface(interface)[0])


@lru_cache(_CACHE)
def canonical_interface(text: str) -> str:
    """``address/length`` as Go prints it, host bits kept. Raises ProtocolError."""
    ip, bits = parse_interface(text)
    return f"{ip}/{bits}"


@lru_cache(_CACHE)
def canonical_network(text: str) -> str:
    """``address/length`` as Go prints its network, host bits cleared. Raises ProtocolError."""
    ip, bits = parse_interface(text)
    host = ip.max_prefixlen - bits
    return f"{type(ip)(int(ip) >> host << host)}/{bits}"


def address_text(interface: str) -> str:
    """The address of a canonical Interface or Network: as ip_of, by text alone, for where speed counts."""
    return interface[: interface.index("/")]


def single(ip: str) -> str:
    """The Network that holds one canonical IP alone, a /32 or a /128: by text, for where speed counts."""
    return f"{ip}/128" if ":" in ip else f"{ip}/32"


def text_of(version: int, number: int) -> str:
    """The IP of that version (4 or 6) with that value, canonical."""
    if version == 4:
        return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return str(ipaddress.IPv6Address(number))


def contains(network: str, ip: str) -> bool:
    """Whether ``ip`` (a plain address) lies in ``network`` (a network or interface text)."""
    version, first, last = bounds(network)
    address = parse_ip(ip)
    return version == address.version and first <= int(address) <= last


def intersects(a: str, b: str) -> bool:
    """Whether two networks share an address."""
    va, fa, la = bounds(a)
    vb, fb, lb = bounds(b)
    return va == vb and fa <= lb and fb <= la


def version_of(text: str) -> int:
    """4 or 6, for any of the three forms."""
    return parse_interface(text)[0].version if "/" in text else parse_ip(text).version


@lru_cache(_CACHE)
def is_private(ip: str) -> bool:
    """Private as every agent of a mesh must agree: 10/8, 172.16/12, 192.168/16 and fd00::/16."""
    if parse_ip(ip).version == 4:
        return any(contains(network, ip) for network in PRIVATE_V4)
    return contains(PRIVATE_V6, ip)


def is_public(ip: str) -> bool:
    """The opposite of is_private; an empty text is no address and not public."""
    return bool(ip) and not is_private(ip)


def is_local(ip: str) -> bool:
    """Loopback, link-local unicast and link-local multicast addresses, which never identify a host."""
    address = parse_ip(ip)
    if address.is_loopback or address.is_link_local:
        return True
    return contains("224.0.0.0/24", ip) if address.version == 4 else contains("ff02::/16", ip)
