"""The flags: one table gives names, defaults, meanings, parsing and the environment variables."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from kilo.errors import PermanentError, ProtocolError
from kilo.log import LEVELS
from kilo.model.net import canonical_network, parse_ip
from kilo.model.settings import Settings


class Config(msgspec.Struct, frozen=True):
    """The values of all flags, checked. Durations are in seconds; ``mtu`` 0 means ``auto``."""

    backend: str = "kubernetes"
    clean_up: bool = True
    clean_up_interface: bool = False
    cni: bool = True
    cni_path: str = "/etc/cni/net.d/10-kilo.conflist"
    compatibility: str = ""
    control_group: str = ""
    create_interface: bool = True
    encapsulate: str = "always"
    firewall: str = "auto"
    hostname: str = ""
    interface: str = "kilo0"
    internal_cidr: tuple[str, ...] = ()
    iptables_forward_rules: bool = False
    kubeconfig: str = ""
    listen: tuple[str, int] = ("", 1107)
    local: bool = True
    log_level: str = "info"
    master: str = ""
    mesh_granularity: str = "location"
    mtu: int = 1420
    port: int = 51820
    prioritise_private_addresses: bool = False
    require_sandbox: bool = False
    resync_period: float = 30.0
    run_dir: str = "/run/kilo"
    sandbox: str = "full"
    service_cidr: tuple[str, ...] = ()
    state_dir: str = "/var/lib/kilo"
    subnet: str = "10.4.0.0/16"
    topology_label: str = "topology.kubernetes.io/region"
    version: bool = False


class FlagError(PermanentError):
    """A flag that is unknown or has a value that is not allowed; the text names flag, value and what is."""


class UnknownFlagError(FlagError):
    """``name``: without dashes."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


Parser = Callable[[str], Any]


@dataclass(frozen=True)
class Flag:
    """One flag: its name without dashes, how its text is read, and its meaning."""

    name: str
    parse: Parser
    allowed: str
    meaning: str
    boolean: bool = False
    repeatable: bool = False

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    @property
    def dashed(self) -> str:
        """As one writes it on a command line."""
        return ("-" if len(self.name) == 1 else "--") + self.name

    @property
    def variable(self) -> str:
        return "KILO_" + self.field.upper()


_TRUE = {"1", "t", "T", "true", "TRUE", "True"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False"}
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(h|ms|m|s|us|µs|ns)")


def _boolean(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError


def duration(text: str) -> float:
    """Seconds of a Go duration: ``30s``, ``1m30s``, ``500ms``. Raises ValueError."""
    body = text.lstrip("+")
    if body == "0":
        return 0.0
    matches = list(_DURATION_PART.finditer(body))
    if not matches or "".join(m.group(0) for m in matches) != body:
        raise ValueError
    return sum(float(m.group(1)) * _UNITS[m.group(2)] for m in matches)


def _positive_duration(text: str) -> float:
    value = duration(text)
    if value <= 0:
        raise ValueError
    return value


def choice(*values: str) -> Parser:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    return parse


def _integer(low: int, high: int) -> Parser:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse


def _group(text: str) -> str:
    if text and not re.fullmatch(r"[0-9]{1,9}|[A-Za-z_][A-Za-z0-9_.-]{0,31}", text):
        raise ValueError
    return text


def _mtu(text: str) -> int:
    return 0 if text == "auto" else int(_integer(576, 65535)(text))


def _networks(text: str) -> tuple[str, ...]:
    try:
        return tuple(canonical_network(part) for part in text.split(",") if part)
    except ProtocolError as e:
        raise ValueError from e


def _network(text: str) -> str:
    networks = _networks(text)
    if len(networks) != 1:
        raise ValueError
    return networks[0]


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError
    if host:
        try:
            parse_ip(host)
        except ProtocolError as e:
            raise ValueError from e
    return host, int(_integer(0, 65535)(port))


def _interface_name(text: str) -> str:
    """A name that the kernel, its settings and the firewall's programs take literally."""
    encoded = text.encode()
    if not 1 <= len(encoded) <= 15 or not text.isprintable() or text in _NAMES_IN_USE:
        raise ValueError
    # "%d" makes one more device at each try; a byte 0xa0 is a blank to the kernel, also within a letter
    if any(byte in b" /:%\xa0" for byte in encoded):
        raise ValueError
    # programs read a "-" in front as an option, and iptables a "+" at the end as any name that begins so
    if text.startswith("-") or text.endswith("+"):
        raise ValueError
    return text


def _path(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise ValueError
    return text


def _run_dir(text: str) -> str:
    if len(os.fsencode(_path(text))) > MOST_RUN_DIR:
        raise ValueError
    return text


def _url(text: str) -> str:
    if text and not re.fullmatch(r"https?://[^\s/?#]+(/\S*)?", text):
        raise ValueError
    return text


def _dns_name(text: str) -> str:
    if text and not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", text):
        raise ValueError
    return text


def _label(text: str) -> str:
    if not re.fullmatch(
        r"([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?/)?[A-Za-z0-9]([-_A-Za-z0-9.]*[A-Za-z0-9])?", text
    ):
        raise ValueError
    return text


MOST_RUN_DIR = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes: the kernel takes a socket's path of 107, and the longest here is one of multiprocessing's."""
_NAMES_IN_USE = {
    *(".", "..", "all", "default"),  # files and directories of settings
    # The kernel makes these with a module, which cannot be loaded where the name is taken.
    *("lo", "tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0"),
    *("kube-bridge", "flannel.1", "cilium_tunl"),  # the bridge of the pods, tunnels of CNI plugins
}
_BOOL = "true or false"
_CIDRS = "CIDRs such as 10.0.0.0/8, comma separated"

FLAGS: tuple[Flag, ...] = (
    Flag("backend", choice("kubernetes"), "kubernetes", "The backend of the mesh."),
    Flag("clean-up", _boolean, _BOOL, "Remove routes, rules and the node's annotations at shutdown.", True),
    Flag("clean-up-interface", _boolean, _BOOL, "Delete the WireGuard interface at shutdown.", True),
    Flag("cni", _boolean, _BOOL, "Manage the node's CNI configuration.", True),
    Flag("cni-path", _path, "an absolute path", "The CNI configuration list."),
    Flag(
        "compatibility",
        choice("", "flannel", "cilium"),
        "empty, flannel or cilium",
        "The CNI plugin to work with.",
    ),
    Flag(
        "control-group",
        _group,
        "a group's name or number",
        "Who but root may ask the agent for kg status, restart and loglevel.",
    ),
    Flag("create-interface", _boolean, _BOOL, "Create the WireGuard interface at startup.", True),
    Flag(
        "encapsulate",
        choice("never", "crosssubnet", "always"),
        "never, crosssubnet or always",
        "When to encapsulate packets within a location.",
    ),
    Flag(
        "firewall",
        choice("auto", "legacy", "nftables"),
        "auto, legacy or nftables",
        "Which tables of the kernel's to use; auto finds out what the host uses.",
    ),
    Flag("hostname", _dns_name, "a node name", "The name of this node's Node object (default: the host's)."),
    Flag(
        "interface",
        _interface_name,
        "1 to 15 bytes without blanks, %, / and :, no - in front, no + at the end; not ., .., all, default, "
        "lo, nor a tunnel or bridge of the kernel's or of a CNI plugin's, such as tunl0 or kube-bridge",
        "The WireGuard interface.",
    ),
    Flag(
        "internal-cidr",
        _networks,
        _CIDRS,
        "Only addresses in these count as internal.",
        repeatable=True,
    ),
    Flag("iptables-forward-rules", _boolean, _BOOL, "Accept pod traffic in FORWARD.", True),
    Flag("kubeconfig", str, "a path", "Path to a kubeconfig (default: in-cluster configuration)."),
    Flag("listen", _listen, "ADDRESS:PORT such as :1107", "Where to serve health and metrics."),
    Flag("local", _boolean, _BOOL, "Manage routes within a location.", True),
    Flag("log-level", choice(*LEVELS), ", ".join(LEVELS), "How much to log."),
    Flag(
        "master", _url, "a URL, http:// or https://", "The Kubernetes API server; overrides the kubeconfig."
    ),
    Flag(
        "mesh-granularity",
        choice("location", "full"),
        "location or full",
        "Mesh locations, or every node.",
    ),
    Flag(
        "mtu",
        _mtu,
        "auto, or 576 to 65535",
        "MTU of the WireGuard interface; auto is the underlay's less 80.",
    ),
    Flag("port", _integer(1, 65535), "1 to 65535", "The UDP port of WireGuard."),
    Flag(
        "prioritise-private-addresses",
        _boolean,
        _BOOL,
        "Prefer a private address as endpoint.",
        True,
    ),
    Flag(
        "require-sandbox",
        _boolean,
        _BOOL,
        "End if a worker cannot be restricted as --sandbox says; otherwise that is said once. For a worker "
        "alone: restrict it, which is otherwise left to whoever starts it.",
        True,
    ),
    Flag(
        "resync-period",
        _positive_duration,
        "a duration such as 30s or 1m30s, above 0",
        "How often everything is compared again.",
    ),
    Flag(
        "run-dir",
        _run_dir,
        f"an absolute path of at most {MOST_RUN_DIR} bytes",
        "Where the workers' sockets are.",
    ),
    Flag(
        "sandbox",
        choice("off", "capabilities", "full"),
        "off, capabilities or full",
        "What the parent takes from the workers that they do not need: capabilities and system calls, "
        "or also users, files and ports.",
    ),
    Flag("service-cidr", _networks, _CIDRS, "Never masqueraded.", repeatable=True),
    Flag("state-dir", _path, "an absolute path", "Where the private key is."),
    Flag("subnet", _network, "a CIDR such as 10.4.0.0/16", "Addresses of WireGuard interfaces."),
    Flag("topology-label", _label, "a label key", "The node label that gives the location."),
    Flag("version", _boolean, _BOOL, "Print the version and exit.", True),
)
_BY_NAME = {flag.name: flag for flag in FLAGS}
_SERVICE_LINK = re.compile(
    r"KILO_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_LINK = re.compile(r"(tcp|udp|sctp)://\S+")


def meant(word: str, known: Iterable[str], before: str = "") -> str:
    """A question whether the nearest of the ``known`` words is meant; "" if none is near."""
    from difflib import get_close_matches  # hardly ever needed

    nearest = get_close_matches(word, tuple(known), 1, 0.7)
    return f" (is {before}{nearest[0]} meant?)" if nearest else ""


def _parted(argument: str) -> tuple[str, str, str]:
    """A flag's name, an equals sign or "", and what follows that."""
    return argument.removeprefix("-").removeprefix("-").partition("=")


def first_word(arguments: Sequence[str], flags: Mapping[str, Flag]) -> int:
    """Where the first word is that is neither a flag nor the value of one; the end if there is none. A flag
    that is unknown counts as one without a value: ``split`` refuses it."""
    place = 0
    while place < len(arguments) and arguments[place].startswith("-") and arguments[place] != "-":
        name, equals, _ = _parted(arguments[place])
        place += 1
        if not name:
            break
        if not equals and name in flags and not flags[name].boolean:
            place += 1
    return min(place, len(arguments))


def split(
    arguments: Sequence[str], flags: Mapping[str, Flag] = _BY_NAME
) -> tuple[dict[str, list[str]], list[str]]:
    """Split a command line into texts by flag name, and the words that are no flags.

    One dash or two, ``--flag value`` or ``--flag=value``; a boolean takes its value only after ``=``.
    ``--`` ends the flags. Raises FlagError.
    """
    texts: dict[str, list[str]] = {}
    words: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return texts, words + rest
        if not argument.startswith("-") or argument == "-":
            words.append(argument)
            continue
        name, equals, text = _parted(argument)
        flag = flags.get(name)
        if flag is None:
            word = argument.partition("=")[0]
            near = meant(name, flags, "--")
            raise UnknownFlagError(f"unknown flag {word}{near}; kg --help lists the flags", name)
        if not equals:
            if flag.boolean:
                text = "true"
            elif rest:
                text = rest.pop(0)
            else:
                raise FlagError(f"flag {flag.dashed} needs a value: {flag.allowed}")
        texts.setdefault(name, []).append(text)
    return texts, words


def value_of(flag: Flag, texts: Sequence[str], source: str = "") -> Any:
    """The value of a flag given as ``texts``: the last wins, a repeatable one adds up. Raises FlagError."""
    values = []
    for text in texts:
        try:
            text.encode()  # bytes that are no UTF-8 could be neither printed nor told to others
            values.append(flag.parse(text))
        except ValueError as e:
            raise FlagError(
                f"{source or flag.dashed}: {text!r} is not allowed; allowed: {flag.allowed}"
            ) from e
    if flag.repeatable:
        return tuple(item for value in values for item in value)
    return values[-1]


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes gives a pod this variable because its namespace has a Service called ``kilo``, or
    ``kilo-`` and more. One of them has the name of a flag's, KILO_PORT; its value tells them apart."""
    return bool(_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _LINK.fullmatch(value)))


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those that may be somebody's who gives a flag."""
    return {name: text for name, text in environment.items() if not is_service_link(name, text)}


def load(texts: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None = None) -> Config:
    """A Config of command-line texts, then ``KILO_`` variables, then defaults. Raises FlagError."""
    environment = os.environ if environment is None else environment
    variables = _variables(environment)
    values: dict[str, Any] = {}
    for flag in FLAGS:
        if flag.name in texts:
            values[flag.field] = value_of(flag, texts[flag.name])
        elif (text := variables.get(flag.variable)) is not None:
            values[flag.field] = value_of(flag, [text], flag.variable)
    if not values.get("hostname"):
        values["hostname"] = socket.gethostname().lower()
    return Config(**values)


def given(texts: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The fields of the Config that a command line, split into ``texts``, or the environment gives."""
    variables = _variables(os.environ)
    return frozenset(flag.field for flag in FLAGS if flag.name in texts or flag.variable in variables)


def differing(config: Config) -> dict[str, Any]:
    """The fields that are not the defaults, but for a URL with a password in it."""
    usual = msgspec.structs.asdict(Config())
    found = {name: value for name, value in msgspec.structs.asdict(config).items() if value != usual[name]}
    if "@" in config.master:
        del found["master"]
    return found


def settings_of(config: Config) -> Settings:
    """What of the flags shapes a plan."""
    return Settings(
        hostname=config.hostname,
        mesh_granularity=config.mesh_granularity,
        subnet=config.subnet,
        port=config.port,
        encapsulate=config.encapsulate,
        compatibility=config.compatibility,
        local=config.local,
        cni=config.cni,
        iptables_forward_rules=config.iptables_forward_rules,
        service_cidrs=config.service_cidr,
        internal_cidrs=config.internal_cidr,
        prioritise_private_addresses=config.prioritise_private_addresses,
        mtu=config.mtu,
    )
