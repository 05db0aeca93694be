"""Rules of legacy xtables and of nf_tables, reduced to what they do to new flows of pods. Pure.

Sources of the format: linux/netfilter/xt_conntrack.h, xt_state.h, nf_tables.h. Called by
kilo.netctl.firewall.forwarding_look.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

from kilo.netctl.firewall.forwarding import Device, Fits, Pods, Rule, Side
from kilo.netctl.firewall.layout import FAMILIES, Entry
from kilo.netctl.firewall.nft_expressions import Form
from kilo.netctl.firewall.nft_messages import FAMILIES as NFT_FAMILIES

_NARROW = frozenset(
    (
        "connbytes",
        "connlabel",
        "connlimit",
        "cpu",
        "dccp",
        "devgroup",
        "dscp",
        "ecn",
        "esp",
        "hashlimit",
        "helper",
        "icmp",
        "icmp6",
        "limit",
        "multiport",
        "quota",
        "recent",
        "rt",
        "sctp",
        "socket",
        "string",
        "tcp",
        "tcpmss",
        "tos",
        "u32",
        "udp",
    )
)
"""Matches of xtables that only special flows meet."""
_NARROW_EXPRESSIONS = frozenset(("limit", "rt", "socket", "quota", "connlimit", "exthdr", "osf", "last"))
_WITHOUT_EFFECT = frozenset(
    ("log", "notrack", "objref", "dynset", "dup", "flow_offload", "masq", "nat", "redir")
)
"""Expressions that neither compare nor decide."""
_NEW = 8
"""The bit of a new connection in a mask of states."""
_CONNTRACK = struct.Struct("@HHH")
_CONNTRACK_AT = 146
_STATE_ASKED = 1
_INVERTED_IN, _INVERTED_OUT, _INVERTED_SRC, _INVERTED_DST, _INVERTED_PROTOCOL = 1, 2, 8, 16, 64
_ADDRESSES: dict[tuple[int, int], Side] = {(4, 12): "src", (4, 16): "dst", (6, 8): "src", (6, 24): "dst"}
_META_PROTOCOL, _META_NFPROTO = 1, 15
_META_IN, _META_OUT = 6, 7
_ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
_NAME_SIZE = 16
_EQUAL, _NOT_EQUAL = 0, 1
_NETWORK_HEADER = 1
_VERDICTS = {0: "drop", 1: "accept", -5: "return"}
_JUMPS = {-3: "@", -4: "@@"}
_GOTO = {4: 2, 6: 4}
"""The flag of a legacy entry that goes to its target."""
_KUBE_PROXY_MARK = 0x4000
_MARK = struct.Struct("@IIB")
_ADDRTYPE = struct.Struct("@HHI")
_ADDRTYPE_LOCAL, _ADDRTYPE_NOT_DESTINATION = 4, 2
_META_MARK, _META_L4PROTO = 3, 16
_CT_MARK = 3
_FIB_TYPE, _FIB_SOURCE, _FIB_DESTINATION, _RTN_LOCAL = 3, 1, 2, 2


def of_entry(entry: Entry, pods: Pods) -> Rule:
    """A rule of a legacy table, of the IP version of ``pods``."""
    fits = Fits(pods)
    source, destination, source_mask, destination_mask, *devices, protocol, flags, inverted = FAMILIES[
        pods.version
    ].ip.unpack(entry.ip)
    _compare(fits, "src", source, source_mask, bool(inverted & _INVERTED_SRC))
    _compare(fits, "dst", destination, destination_mask, bool(inverted & _INVERTED_DST))
    _device(fits, "in", devices[0], devices[2], bool(inverted & _INVERTED_IN))
    _device(fits, "out", devices[1], devices[3], bool(inverted & _INVERTED_OUT))
    if protocol or inverted & _INVERTED_PROTOCOL:
        fits.narrow()
    for match in entry.matches:
        _match(fits, match.name, match.revision, match.data)
    return fits.rule(_entry_target(entry, bool(flags & _GOTO[pods.version])))


def _device(fits: Fits, way: Device, padded: bytes, mask: bytes, inverted: bool) -> None:
    """An interface's name; its mask covers the zero that ends it, unless any name that begins so is meant."""
    covered = len(mask.rstrip(b"\0"))
    if covered:
        name = padded.partition(b"\0")[0]
        fits.device(way, name.decode(errors="replace"), inverted, prefix=covered <= len(name))


def _entry_target(entry: Entry, goes: bool) -> str:
    name = entry.target.partition(".")[0]
    if name in ("ACCEPT", "DROP", "RETURN"):
        return name.lower()
    if name == "REJECT":
        return "drop"
    if name in ("QUEUE", "NFQUEUE"):
        return "accept"
    if not entry.target.startswith("@"):
        return ""
    return "@" * goes + entry.target


def _compare(fits: Fits, side: Side, address: bytes, mask: bytes, inverted: bool) -> None:
    """An address and the mask under which it is compared."""
    bits = int.from_bytes(mask)
    rest = (1 << 8 * len(mask)) - 1 - bits
    if rest & rest + 1:
        fits.unknown()
    elif bits or inverted:
        first = int.from_bytes(address) & bits
        fits.address(side, first, first | rest, inverted)


def _match(fits: Fits, name: str, revision: int, data: bytes) -> None:
    """A match of xtables."""
    if name == "comment":
        return
    if name == "state" and len(data) >= 4:
        _state(fits, int.from_bytes(data[:4], sys.byteorder))
    elif name == "conntrack" and revision >= 2 and len(data) >= _CONNTRACK_AT + _CONNTRACK.size:
        asked, inverted, states = _CONNTRACK.unpack_from(data, _CONNTRACK_AT)
        if asked != _STATE_ASKED:
            fits.narrow()
        else:
            _state(fits, states ^ _NEW if inverted & _STATE_ASKED else states)
    elif name in _NARROW or _is_special(name, revision, data):
        fits.narrow()
    else:
        fits.unknown()


def _is_special(name: str, revision: int, data: bytes) -> bool:
    """Whether a match is kube-proxy's for its mark, or one of this host's own addresses as destination."""
    if name == "mark" and revision == 1 and len(data) >= 9:
        return _MARK.unpack_from(data) == (_KUBE_PROXY_MARK, _KUBE_PROXY_MARK, 0)
    if name == "addrtype" and revision == 1 and len(data) >= _ADDRTYPE.size:
        _, destination, flags = _ADDRTYPE.unpack_from(data)
        return destination == _ADDRTYPE_LOCAL and not flags & _ADDRTYPE_NOT_DESTINATION
    return False


def _state(fits: Fits, states: int) -> None:
    if not states & _NEW:
        fits.narrow()


class _Loaded(NamedTuple):
    """What an expression has put in a register: of which kind, its key or offset, and the mask since."""

    kind: str
    key: int = 0
    base: int = 0
    mask: bytes = b""


def of_form(form: Form, pods: Pods) -> Rule:
    """A rule of nf_tables."""
    fits, target = Fits(pods), ""
    loaded = _Loaded("")
    sets = False
    for name, attributes in form.parts:
        values = dict(attributes)
        if name == "payload":
            loaded = _Loaded(name, _number(values, 3), _number(values, 2))
        elif name in ("meta", "ct"):
            loaded = _Loaded(name, _number(values, 2))
        elif name in ("fib", "numgen", "hash", "xfrm"):
            loaded = _Loaded(name, _number(values, 2), _number(values, 3))
        elif name == "bitwise":
            loaded = loaded._replace(mask=values.get((4, 1), b""))
        elif name == "cmp":
            _compared(fits, pods.version, loaded, _number(values, 2), values.get((3, 1), b""))
        elif name == "lookup":
            sets = True
            fits.narrow() if loaded.kind == "ct" and loaded.key != _CT_MARK else fits.unknown()
        elif name == "match":
            data = values.get((3,), b"")
            _match(fits, _name(values), _number(values, 2), data)
        elif verdict := _decision(name, values):
            target = verdict
        elif name in _NARROW_EXPRESSIONS:
            fits.narrow()
        elif name not in _WITHOUT_EFFECT and name not in ("immediate", "target", "byteorder"):
            fits.unknown()
    # The verdict may stand in the elements of a set.
    return fits.rule(target or ("accept" if sets else ""))


_Values = dict[tuple[int, ...], bytes]


def _decision(name: str, values: _Values) -> str:
    """The target of a rule that has this expression, "" if it decides nothing."""
    if name == "reject" or (name == "target" and _name(values) == "REJECT"):
        return "drop"
    if name == "queue" or (name == "target" and _name(values) == "NFQUEUE"):
        return "accept"
    if name != "immediate" or (1,) in values:
        return ""
    code = int.from_bytes(values.get((2, 2, 1), b""), signed=True)
    if code in _JUMPS:
        return _JUMPS[code] + values.get((2, 2, 2), b"").partition(b"\0")[0].decode(errors="replace")
    return _VERDICTS.get(code, "")


def _compared(fits: Fits, version: int, loaded: _Loaded, operation: int, value: bytes) -> None:
    """A comparison of what was loaded. ``value`` is b"" if it is all zero: a Form leaves that out."""
    if operation not in (_EQUAL, _NOT_EQUAL):
        fits.unknown()
        return
    inverted = operation == _NOT_EQUAL
    if loaded.kind == "payload":
        side = _ADDRESSES.get((version, loaded.key)) if loaded.base == _NETWORK_HEADER else None
        if side is None:
            fits.narrow()
            return
        size = 4 if version == 4 else 16
        mask = loaded.mask or b"\xff" * len(value or bytes(size))
        _compare(fits, side, value.ljust(size, b"\0"), mask.ljust(size, b"\0"), inverted)
    elif loaded.kind == "ct":
        _ct(fits, loaded, inverted, value)
    elif loaded.kind == "meta":
        _meta(fits, version, loaded, inverted, value)
    elif loaded.kind == "fib" and not inverted and _is_local_destination(loaded, value):
        fits.narrow()
    else:
        fits.unknown()


def _is_local_destination(loaded: _Loaded, value: bytes) -> bool:
    sides = loaded.base & (_FIB_SOURCE | _FIB_DESTINATION)
    kind = int.from_bytes(value, sys.byteorder)
    return (loaded.key, sides, kind) == (_FIB_TYPE, _FIB_DESTINATION, _RTN_LOCAL)


def _ct(fits: Fits, loaded: _Loaded, inverted: bool, value: bytes) -> None:
    """A connection's state, with a mask (any of these) or without (this one)."""
    states = int.from_bytes(loaded.mask or value, sys.byteorder)
    if loaded.key == _CT_MARK:
        fits.unknown()
    elif loaded.key or inverted != bool(loaded.mask):
        fits.narrow()
    else:
        _state(fits, states)


def _meta(fits: Fits, version: int, loaded: _Loaded, inverted: bool, value: bytes) -> None:
    key = loaded.key
    if key in (_META_PROTOCOL, _META_NFPROTO):
        own = _ETHERTYPES[version] if key == _META_PROTOCOL else bytes((NFT_FAMILIES[version],))
        if (value == own) == inverted:
            fits.narrow()
    elif key in (_META_IN, _META_OUT):
        name = value.partition(b"\0")[0].decode(errors="replace")
        prefix = len(value) < _NAME_SIZE and not value.endswith(b"\0")
        fits.device("in" if key == _META_IN else "out", name, inverted, prefix)
    elif key == _META_L4PROTO or (
        key == _META_MARK
        and not inverted
        and value == loaded.mask == _KUBE_PROXY_MARK.to_bytes(4, sys.byteorder)
    ):
        fits.narrow()
    else:
        fits.unknown()


def _number(values: _Values, kind: int) -> int:
    return int.from_bytes(values.get((kind,), b""))


def _name(values: _Values) -> str:
    return values.get((1,), b"").partition(b"\0")[0].decode(errors="replace")
