"""A CNI configuration list as text in, text out: the pod CIDR is put in, all else stays as it was.

Pure. Values that are not ours are carried over as the bytes that stand in the file, so that number
formats, escapes, unknown fields and the order of keys survive. Used by kilo.cni.worker alone.
What container runtimes refuse is refused here by name, since no pod would start with it.
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
HOST_LOCAL = "host-local"
MTU_MIN, MTU_MAX = 68, 65535
_INDENT = re.compile(rb'\n( {1,8})"')
_BROKEN = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
_Object = dict[str, msgspec.Raw]
_OLD_STYLE = frozenset({"subnet", "rangestart", "rangeend", "gateway"})
"""What host-local takes for one more range, beside ``ranges``; in small letters."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_NAME_IT = f'give it "name": "{NETWORK_NAME}"'
_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})")
_NEWEST = (1, 1, 0)


class _Ipam(msgspec.Struct):
    type: str | None = None


class _NetworkConf(msgspec.Struct):
    """What libcni itself reads of a plugin; it refuses the whole list where a type differs."""

    cniVersion: str | None = None
    name: str | None = None
    type: str | None = None
    capabilities: dict[str, bool | None] | None = None
    ipam: _Ipam | None = None


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
        "ipam": {"type": HOST_LOCAL, "ranges": _ranges(target.pod_cidr)},
    }
    portmap = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
    document = {"cniVersion": CNI_VERSION, "name": NETWORK_NAME, "plugins": [bridge, portmap]}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def with_pod_cidr(text: bytes, pod_cidr: str) -> bytes | None:
    """``text`` with ``pod_cidr`` as the only range of every host-local ipam; None if it is that already.

    Raises ProtocolError, with the reason and what to do, for a text that no container runtime accepts
    or that has no plugin with ``ipam``.
    """
    document, plugins = _accepted(text)
    changed = False
    for plugin in plugins:
        ipam = _ipam(plugin)
        if ipam is None or _type(ipam) != HOST_LOCAL:
            continue
        kept = {key: value for key, value in ipam.items() if not _contradicts(key)}
        kept["ranges"] = msgspec.Raw(msgspec.json.encode(_ranges(pod_cidr)))
        if kept.keys() == ipam.keys() and _same(ipam["ranges"], pod_cidr):
            continue
        changed = True
        plugin["ipam"] = msgspec.Raw(msgspec.json.encode(kept))
    if not changed:
        return None
    document["plugins"] = msgspec.Raw(msgspec.json.encode(plugins))
    match = _INDENT.search(text)
    indent = len(match.group(1)) if match else 2
    return msgspec.json.format(msgspec.json.encode(document), indent=indent) + b"\n"


def other_ipam(text: bytes) -> list[str]:
    """The ipam of other types than host-local, by plugin: their pods get no address of the pod CIDR.

    Raises ProtocolError as ``with_pod_cidr``.
    """
    _, plugins = _accepted(text)
    types = [(_label(number, plugin), _ipam(plugin)) for number, plugin in enumerate(plugins)]
    return [
        f"{label} has ipam of type {_type(ipam)}"
        for label, ipam in types
        if ipam is not None and _type(ipam) != HOST_LOCAL
    ]


def _ranges(pod_cidr: str) -> list[list[dict[str, str]]]:
    return [[{"subnet": pod_cidr}]]


def _contradicts(key: str) -> bool:
    """Whether host-local would read other ranges from this key of its ipam. It ignores case."""
    return key.lower() in _OLD_STYLE or (key != "ranges" and key.lower() == "ranges")


def _accepted(text: bytes) -> tuple[_Object, list[_Object]]:
    """A list and its plugins, of which one has ipam. Raises ProtocolError for what libcni refuses."""
    try:
        text.decode()
        value: Any = msgspec.json.decode(text, type=msgspec.Raw)
    except _BROKEN as e:
        raise ProtocolError(f"not JSON: {e}") from e
    document = _object(value, "it")
    _check_head(document)
    plugins = _plugins(document)
    for number, plugin in enumerate(plugins):
        _check_plugin(number, plugin)
    if not any(_ipam(plugin) for plugin in plugins):
        raise ProtocolError('no plugin has ipam: give the first "ipam": {"type": "host-local"}')
    return document, plugins


def _check_head(document: _Object) -> None:
    """What libcni and the plugins ask of the list itself. Raises ProtocolError."""
    name = _decoded(document.get("name"))
    if not name:
        raise ProtocolError(f"it has no name, without which the container runtime refuses it: {_NAME_IT}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ProtocolError(
            f"its name {name!r} is refused by the container runtime, which takes letters, digits, "
            f"_, . and - after a letter or digit: {_NAME_IT}"
        )
    version = _decoded(document.get("cniVersion", msgspec.Raw(b'""')))
    # libcni and the plugins read a list without a version, or with an empty one, as one of 0.1.0.
    if version != "" and not (isinstance(version, str) and _is_version(version)):
        raise ProtocolError(
            f"its cniVersion {version!r} is none that plugins know: write one of {', '.join(_VERSIONS)}"
        )
    disable = _decoded(document.get("disableCheck", msgspec.Raw(b"false")))
    if not isinstance(disable, bool) and disable not in ("true", "false"):
        raise ProtocolError(
            f"its disableCheck {disable!r} is refused by the container runtime: write true or false"
        )


def _is_version(version: str) -> bool:
    """Whether plugins know this version of the specification, or it is newer than this program."""
    match = _VERSION.fullmatch(version)
    return version in _VERSIONS or (match is not None and tuple(map(int, match.groups())) > _NEWEST)


def _plugins(document: _Object) -> list[_Object]:
    if "plugins" not in document:
        raise ProtocolError('it has no plugins: a list has {"name": ..., "plugins": [...]}')
    try:
        plugins = msgspec.json.decode(document["plugins"], type=list[msgspec.Raw])
    except _BROKEN as e:
        raise ProtocolError("plugins is not a list") from e
    if not plugins:
        raise ProtocolError(
            "plugins is empty, which the container runtime refuses: remove the file to have one made"
        )
    return [_object(plugin, f"plugin {number}") for number, plugin in enumerate(plugins)]


def _check_plugin(number: int, plugin: _Object) -> None:
    """What libcni asks of a plugin in the list. Raises ProtocolError."""
    label = _label(number, plugin)
    if _decoded(plugin.get("ipam")) is not None:
        _object(plugin["ipam"], f"ipam of {label}")
    try:
        conf = msgspec.json.decode(msgspec.json.encode(plugin), type=_NetworkConf)
    except _BROKEN as e:
        raise ProtocolError(f"{label} is refused by the container runtime: {e}") from e
    if not conf.type:
        raise ProtocolError(
            f"{label} has no type, without which the container runtime refuses it: name the plugin's program"
        )
    ipam = _ipam(plugin)
    if ipam is not None and not _type(ipam):
        raise ProtocolError(
            f'ipam of {label} has no type, so that its pods get no address: give it "type": "host-local"'
        )


def _label(number: int, plugin: _Object) -> str:
    kind = _type(plugin)
    return f"plugin {number} ({kind})" if kind else f"plugin {number}"


def _type(part: _Object) -> str:
    """The type of a plugin or its ipam, "" if there is none."""
    kind = _decoded(part.get("type"))
    return kind if isinstance(kind, str) else ""


def _ipam(plugin: _Object) -> _Object | None:
    """What gives a plugin's pods addresses; None for ``{}`` too, which gives none on purpose."""
    # The Go programs that read a list take null for a key that is not there.
    absent = _decoded(plugin.get("ipam")) is None
    return None if absent else _object(plugin["ipam"], "ipam") or None


def _decoded(raw: msgspec.Raw | None) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except _BROKEN:
        return ...


def _object(raw: msgspec.Raw, what: str) -> _Object:
    try:
        return msgspec.json.decode(raw, type=_Object)
    except _BROKEN as e:
        raise ProtocolError(f"{what} is not an object") from e


def _same(ranges: msgspec.Raw, pod_cidr: str) -> bool:
    try:
        return bool(msgspec.json.decode(ranges) == _ranges(pod_cidr))
    except _BROKEN:
        return False
