"""The messages of routing netlink that netctl sends and reads, as plain values. Pure.

``pack_*`` gives the body of a message, ``parse_*`` reads one. Addresses are text in the forms of
kilo.model.net. Tables are numbered as the kernel does: the main one is 254.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from kilo.model.net import parse_interface
from kilo.netctl.netlink.attributes import U32, as_text, attribute, ip_text, nested, pack_ip, parse, text, u32
from kilo.netctl.netlink.socket import Message

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

GROUP_LINK = 1
GROUPS_ADDRESS = (5, 9)
GROUPS_ROUTE = (7, 11)
GROUPS_RULE = (8, 19)

FAMILIES = (socket.AF_INET, socket.AF_INET6)
MAIN_TABLE = 254
PROTOCOL_UNSPEC, PROTOCOL_KERNEL, PROTOCOL_BOOT, PROTOCOL_STATIC = 0, 2, 3, 4
UNICAST = 1

_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_EXT_MASK = 3, 4, 10, 18, 29
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_UDP_PORT = {"vxlan": 15, "geneve": 5, "bareudp": 1}
"""Of each kind of tunnel, the attribute that has its UDP port, in network order."""
_SKIP_STATS = 1 << 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_PROTO = 1, 2, 11
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTA_NH_ID = 9, 15, 18, 30
_RTNH_F_ONLINK = 4
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_TABLE_COMPAT = 252
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_TABLE, _FRA_PROTOCOL = 1, 2, 3, 6, 15, 21
_TO_TABLE = 1
_IPV6_METRIC = 1024

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_RULE = struct.Struct("=BBBBBBBBI")


class LinkInfo(NamedTuple):
    """A network interface; ``number`` is its index. ``kind`` is "" for one made of hardware.

    ``carrier``: its operational state is up, or unknown. ``master``: the index of the bridge or bond of
    which it is a port, 0 for none.
    """

    number: int
    name: str
    mtu: int
    kind: str
    up: bool
    carrier: bool = True
    master: int = 0


class AddressInfo(NamedTuple):
    """An address, in Interface form, of the interface with index ``link``.

    ``protocol``: who put it there, 0 for unknown (always before Linux 5.18).
    """

    link: int
    interface: str
    protocol: int


class RouteInfo(NamedTuple):
    """A unicast route with one next hop, over the interface with index ``link``.

    ``metric`` is 0 where it is the family's default.
    """

    dst: str
    table: int
    link: int
    via: str
    src: str
    onlink: bool
    protocol: int
    metric: int


class RuleInfo(NamedTuple):
    """A policy rule that leads to a table. ``src`` and ``dst``: Network, or "" for any."""

    family: int
    table: int
    src: str
    dst: str
    iif: str
    priority: int
    protocol: int


def list_links() -> bytes:
    """The body of RTM_GETLINK for all interfaces, without their counters."""
    return _LINK.pack(0, 0, 0, 0, 0) + u32(_IFLA_EXT_MASK, _SKIP_STATS)


def pack_link(
    number: int = 0, *, name: str = "", kind: str = "", mtu: int = 0, up: bool | None = None
) -> bytes:
    """An interface to make (by ``name`` and ``kind``), to change, or to delete (by ``number``)."""
    body = _LINK.pack(0, 0, number, _IFF_UP if up else 0, 0 if up is None else _IFF_UP)
    if name:
        body += text(_IFLA_IFNAME, name)
    if mtu:
        body += u32(_IFLA_MTU, mtu)
    if kind:
        body += nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, kind.encode()))
    return body


def parse_link(message: Message) -> LinkInfo | None:
    """An interface, of RTM_NEWLINK or RTM_DELLINK; None where the news is of a bridge's port."""
    family, _, number, flags, _ = _LINK.unpack_from(message.data, message.start)
    if family:
        return None
    found = parse(message.data, message.start + _LINK.size, message.end)
    info = found.get(_IFLA_LINKINFO, b"")
    return LinkInfo(
        number=number,
        name=as_text(found.get(_IFLA_IFNAME, b"")),
        mtu=U32.unpack(found[_IFLA_MTU])[0] if _IFLA_MTU in found else 0,
        kind=as_text(parse(info, 0, len(info)).get(_IFLA_INFO_KIND, b"")),
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_RUNNING),
        master=U32.unpack(found[_IFLA_MASTER])[0] if _IFLA_MASTER in found else 0,
    )


def tunnel_port(message: Message) -> int:
    """The UDP port at which an interface of RTM_NEWLINK listens, 0 if it is no tunnel over UDP."""
    found = parse(message.data, message.start + _LINK.size, message.end)
    info = found.get(_IFLA_LINKINFO, b"")
    described = parse(info, 0, len(info))
    data = described.get(_IFLA_INFO_DATA, b"")
    number = _UDP_PORT.get(as_text(described.get(_IFLA_INFO_KIND, b"")), 0)
    return int.from_bytes(parse(data, 0, len(data)).get(number, b""), "big")


def sets_up(body: bytes) -> bool:
    """Whether the body of an RTM_NEWLINK says whether the interface is to be up."""
    return bool(_LINK.unpack_from(body)[4] & _IFF_UP)


def list_addresses() -> bytes:
    """The body of RTM_GETADDR for all addresses."""
    return _ADDRESS.pack(0, 0, 0, 0, 0)


def pack_address(address: AddressInfo) -> bytes:
    """An address to add or to delete."""
    ip, bits = parse_interface(address.interface)
    family, raw = pack_ip(str(ip))
    body = _ADDRESS.pack(family, bits, 0, 0, address.link)
    body += attribute(_IFA_LOCAL, raw) + attribute(_IFA_ADDRESS, raw)
    return body + attribute(_IFA_PROTO, bytes([address.protocol])) if address.protocol else body


def parse_address(message: Message) -> AddressInfo | None:
    """An address, of RTM_NEWADDR or RTM_DELADDR; None for families that are not the internet's."""
    family, bits, _, _, link = _ADDRESS.unpack_from(message.data, message.start)
    found = parse(message.data, message.start + _ADDRESS.size, message.end)
    raw = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if family not in FAMILIES or raw is None:
        return None
    return AddressInfo(link, f"{ip_text(raw)}/{bits}", found.get(_IFA_PROTO, b"\0")[0])


def list_routes(family: int, protocol: int = 0) -> bytes:
    """The body of RTM_GETROUTE for a family's routes, of one protocol only where the kernel can."""
    return _ROUTE.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0)


def pack_lookup(ip: str) -> bytes:
    """The body of RTM_GETROUTE for the way to one address (IP form)."""
    family, raw = pack_ip(ip)
    return _ROUTE.pack(family, len(raw) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, raw)


def pack_route(route: RouteInfo, delete: bool = False) -> bytes:
    """A route to add, to replace with, or to delete."""
    ip, bits = parse_interface(route.dst)
    family, raw = pack_ip(str(ip))
    if delete:
        scope = _SCOPE_NOWHERE
    else:
        scope = _SCOPE_UNIVERSE if route.via or family == socket.AF_INET6 else _SCOPE_LINK
    table = route.table if route.table < 256 else _TABLE_COMPAT
    flags = _RTNH_F_ONLINK if route.onlink else 0
    parts = [
        _ROUTE.pack(family, bits, 0, 0, table, route.protocol, scope, UNICAST, flags),
        attribute(_RTA_DST, raw),
        u32(_RTA_TABLE, route.table),
        u32(_RTA_OIF, route.link),
    ]
    if route.via:
        via_family, via = pack_ip(route.via)
        if via_family == family:
            parts.append(attribute(_RTA_GATEWAY, via))
        else:
            parts.append(attribute(_RTA_VIA, struct.pack("=H", via_family) + via))
    if route.src:
        parts.append(attribute(_RTA_PREFSRC, pack_ip(route.src)[1]))
    if route.metric:
        parts.append(u32(_RTA_PRIORITY, route.metric))
    return b"".join(parts)


def route_facts(message: Message) -> tuple[int, int, int, int]:
    """Family, prefix length, protocol and kind of a route, read without looking at its attributes."""
    family, bits, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(message.data, message.start)
    return family, bits, protocol, kind


def parse_route(message: Message) -> RouteInfo | None:
    """A route, of RTM_NEWROUTE or RTM_DELROUTE; None if it is not unicast with one next hop."""
    data, start = message.data, message.start
    family, bits, _, tos, table, protocol, _, kind, flags = _ROUTE.unpack_from(data, start)
    found = parse(data, start + _ROUTE.size, message.end)
    if kind != UNICAST or family not in FAMILIES or tos or _RTA_MULTIPATH in found or _RTA_NH_ID in found:
        return None
    raw = found.get(_RTA_DST) or bytes(4 if family == socket.AF_INET else 16)
    via = found.get(_RTA_GATEWAY, b"")
    if not via and _RTA_VIA in found:
        via = found[_RTA_VIA][2:]
    src = found.get(_RTA_PREFSRC, b"")
    metric = U32.unpack(found[_RTA_PRIORITY])[0] if _RTA_PRIORITY in found else 0
    return RouteInfo(
        dst=f"{ip_text(raw)}/{bits}",
        table=U32.unpack(found[_RTA_TABLE])[0] if _RTA_TABLE in found else table,
        link=U32.unpack(found[_RTA_OIF])[0] if _RTA_OIF in found else 0,
        via=ip_text(via) if via else "",
        src=ip_text(src) if src else "",
        onlink=bool(flags & _RTNH_F_ONLINK),
        protocol=protocol,
        metric=0 if family == socket.AF_INET6 and metric == _IPV6_METRIC else metric,
    )


def list_rules(family: int) -> bytes:
    """The body of RTM_GETRULE for a family's rules."""
    return _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)


def pack_rule(rule: RuleInfo) -> bytes:
    """A rule to add or to delete."""
    table = rule.table if rule.table < 256 else _TABLE_COMPAT
    lengths = [0, 0]
    parts = []
    for i, (kind, network) in enumerate(((_FRA_DST, rule.dst), (_FRA_SRC, rule.src))):
        if network:
            ip, lengths[i] = parse_interface(network)
            parts.append(attribute(kind, pack_ip(str(ip))[1]))
    parts += (
        u32(_FRA_TABLE, rule.table),
        u32(_FRA_PRIORITY, rule.priority),
        attribute(_FRA_PROTOCOL, bytes([rule.protocol])),
    )
    if rule.iif:
        parts.append(text(_FRA_IIFNAME, rule.iif))
    return _RULE.pack(rule.family, lengths[0], lengths[1], 0, table, 0, 0, _TO_TABLE, 0) + b"".join(parts)


def parse_rule(message: Message) -> RuleInfo | None:
    """A rule, of RTM_NEWRULE or RTM_DELRULE; None if it does not lead to a table."""
    data, start = message.data, message.start
    family, dst_bits, src_bits, _, table, _, _, action, _ = _RULE.unpack_from(data, start)
    if family not in FAMILIES or action != _TO_TABLE:
        return None
    found = parse(data, start + _RULE.size, message.end)
    return RuleInfo(
        family=family,
        table=U32.unpack(found[_FRA_TABLE])[0] if _FRA_TABLE in found else table,
        src=f"{ip_text(found[_FRA_SRC])}/{src_bits}" if _FRA_SRC in found else "",
        dst=f"{ip_text(found[_FRA_DST])}/{dst_bits}" if _FRA_DST in found else "",
        iif=as_text(found.get(_FRA_IIFNAME, b"")),
        priority=U32.unpack(found[_FRA_PRIORITY])[0] if _FRA_PRIORITY in found else 0,
        protocol=found.get(_FRA_PROTOCOL, b"\0")[0],
    )
