"""A CNI configuration list as text in, text out: the pod CIDR is put in, all else stays as it was.

Pure. Values that are not ours are carried over as the bytes that stand in the file, so that number
formats, escapes, unknown fields and the order of keys survive. Used by kilo.cni.worker alone.
The format: https://github.com/containernetworking/cni/blob/spec-v0.4.0/SPEC.md
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from kilo.errors import ProtocolError
from kilo.model.net import canonical_network, parse_interface
from kilo.model.plan import CniTarget

CNI_VERSION = "0.4.0"
NETWORK_NAME = "kilo"
BRIDGE = "kube-bridge"
MTU_MIN, MTU_MAX = 68, 65535
_INDENT = re.compile(rb'\n( {1,8})"')
_BROKEN = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
_Object = dict[str, msgspec.Raw]


def check_target(target: CniTarget) -> None:
    """Raises ProtocolError unless pods can be given addresses of ``pod_cidr`` and ``mtu`` is one."""
    if canonical_network(target.pod_cidr) != target.pod_cidr:
        raise ProtocolError(f"pod CIDR {target.pod_cidr!r} has host bits or is not in canonical form")
    ip, length = parse_interface(target.pod_cidr)
    if not 0 < length <= ip.max_prefixlen - 2:
        raise ProtocolError(f"pod CIDR {target.pod_cidr!r} leaves no addresses for pods, or is everything")
    if not MTU_MIN <= target.mtu <= MTU_MAX:
        raise ProtocolError(f"MTU {target.mtu} is not in {MTU_MIN} to {MTU_MAX}")


def fresh(target: CniTarget) -> bytes:
    """The list that is written where there is none, as the Go project's manifests have it."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isDefaultGateway": True,
        "forceAddress": True,
        "mtu": target.mtu,
        "ipam": {"type": "host-local", "ranges": _ranges(target.pod_cidr)},
    }
    portmap = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
    document = {"cniVersion": CNI_VERSION, "name": NETWORK_NAME, "plugins": [bridge, portmap]}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def with_pod_cidr(text: bytes, pod_cidr: str) -> bytes | None:
    """``text`` with ``ipam.ranges`` of every plugin that has ``ipam`` set; None if they are already.

    Raises ProtocolError, with the reason, for a text that is no configuration list with ``ipam``.
    """
    document = _document(text)
    plugins = _plugins(document)
    found = changed = False
    for number, plugin in enumerate(plugins):
        if "ipam" not in plugin:
            continue
        found = True
        ipam = _object(plugin["ipam"], f"ipam of plugin {number}")
        if _same(ipam.get("ranges"), pod_cidr):
            continue
        changed = True
        ipam["ranges"] = msgspec.Raw(msgspec.json.encode(_ranges(pod_cidr)))
        plugin["ipam"] = msgspec.Raw(msgspec.json.encode(ipam))
    if not found:
        raise ProtocolError("no plugin has ipam")
    if not changed:
        return None
    document["plugins"] = msgspec.Raw(msgspec.json.encode(plugins))
    match = _INDENT.search(text)
    indent = len(match.group(1)) if match else 2
    return msgspec.json.format(msgspec.json.encode(document), indent=indent) + b"\n"


def _ranges(pod_cidr: str) -> list[list[dict[str, str]]]:
    return [[{"subnet": pod_cidr}]]


def _document(text: bytes) -> _Object:
    try:
        text.decode()
        value: Any = msgspec.json.decode(text, type=msgspec.Raw)
    except _BROKEN as e:
        raise ProtocolError(f"not JSON: {e}") from e
    return _object(value, "it")


def _plugins(document: _Object) -> list[_Object]:
    if "plugins" not in document:
        raise ProtocolError("it has no plugins")
    try:
        plugins = msgspec.json.decode(document["plugins"], type=list[msgspec.Raw])
    except _BROKEN as e:
        raise ProtocolError("plugins is not a list") from e
    return [_object(plugin, f"plugin {number}") for number, plugin in enumerate(plugins)]


def _object(raw: msgspec.Raw, what: str) -> _Object:
    try:
        return msgspec.json.decode(raw, type=_Object)
    except _BROKEN as e:
        raise ProtocolError(f"{what} is not an object") from e


def _same(ranges: msgspec.Raw | None, pod_cidr: str) -> bool:
    if ranges is None:
        return False
    try:
        return bool(msgspec.json.decode(ranges) == _ranges(pod_cidr))
    except _BROKEN:
        return False
