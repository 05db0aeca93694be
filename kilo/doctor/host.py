"""Checks of the host: its kernel, its settings, its ports and its files. They only read."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from pathlib import Path

from kilo.config import Config
from kilo.doctor.finding import Finding
from kilo.holders import command, processes, tcp_listeners, udp_sockets
from kilo.netctl.foreign import routes_of_others
from kilo.netctl.ports import holders_of

PROC = Path("/proc")
MODULES = Path("/lib/modules")


def wireguard(config: Config) -> Finding:
    """Whether the host can have a WireGuard interface."""
    name = "wireguard"
    if Path("/sys/class/net", config.interface).exists():
        return Finding(name, "ok", f"{config.interface} is there")
    if Path("/sys/module/wireguard").exists() or _has_module("wireguard"):
        return Finding(name, "ok", "the kernel has WireGuard")
    if not config.create_interface:
        mend = f"whoever is to make {config.interface} has to, or give --create-interface=true"
        return Finding(name, "fail", f"there is no {config.interface}, and --create-interface is false", mend)
    if program := shutil.which("wireguard-go"):
        return Finding(name, "ok", f"the kernel has no WireGuard, but there is {program}")
    return Finding(
        name,
        "fail",
        f"neither does Linux {os.uname().release} have WireGuard, nor is wireguard-go on PATH",
        "use a kernel with CONFIG_WIREGUARD (5.6 or newer), install its module, or install wireguard-go",
    )


def _has_module(module: str) -> bool:
    directory = MODULES / os.uname().release
    for listing in ("modules.builtin", "modules.dep"):
        try:
            text = (directory / listing).read_text()
        except OSError:
            continue
        if f"/{module}.ko" in text:
            return True
    return False


def encapsulation(config: Config) -> Finding:
    """Whether the kernel has IPIP, where --encapsulate needs it."""
    name = "encapsulation"
    if config.encapsulate == "never" or config.compatibility:
        return Finding(name, "ok", f"--encapsulate={config.encapsulate} needs nothing of the kernel here")
    if Path("/sys/module/ipip").exists() or Path("/sys/class/net/tunl0").exists() or _has_module("ipip"):
        return Finding(name, "ok", "the kernel has IPIP")
    mend = "install the module ipip, or give --encapsulate=never if all nodes of a location share a network"
    return Finding(name, "fail", f"--encapsulate={config.encapsulate}, but the kernel has no IPIP", mend)


def forwarding(config: Config) -> Finding:
    """Whether the host forwards packets of its pods."""
    setting = "net.ipv4.ip_forward"
    value = _sysctl(setting)
    if value == "1":
        return Finding("forwarding", "ok", f"{setting} is 1")
    mend = f"sysctl -w {setting}=1, and in /etc/sysctl.d, so that it stays"
    return Finding("forwarding", "fail", f"{setting} is {value or 'not there'}: pods reach nobody", mend)


def reverse_path(config: Config) -> Finding:
    """Whether the kernel drops packets that come over another interface than answers would go over."""
    strict = []
    for interface in (config.interface, "tunl0"):
        found = [_sysctl(f"net.ipv4.conf.{name}.rp_filter") for name in ("all", interface)]
        if "" not in found and max(found) == "1":
            strict.append(interface)
    if not strict:
        return Finding("reverse path", "ok", "rp_filter is not strict on the mesh's interfaces")
    settings = " ".join(f"net.ipv4.conf.{name}.rp_filter=2" for name in strict)
    found_text = (
        f"rp_filter is strict on {' and '.join(strict)}: what comes another way than it would go is lost"
    )
    return Finding("reverse path", "warn", found_text, f"sysctl -w {settings}, and in /etc/sysctl.d")


def port(config: Config) -> Finding:
    """Whether a program, or another interface, has WireGuard's UDP port."""
    name = "port"
    holders = holders_of(config.port, frozenset(udp_sockets(config.port)))
    others = [holder for holder in holders if holder.link != config.interface]
    if not holders:
        return Finding(name, "ok", f"UDP port {config.port} is free")
    if not others:
        return Finding(name, "ok", f"{config.interface} has UDP port {config.port}")
    found = f"UDP port {config.port} is taken by {' and '.join(other.name for other in others)}"
    if os.geteuid() and not any(other.seen for other in others):
        return Finding(name, "unknown", found)  # it may be the agent's, which only root may ask
    remedies = dict.fromkeys(other.remedy for other in others)
    return Finding(name, "fail", found, "; ".join(remedies))


def listen(config: Config) -> Finding:
    """Whether another program has the TCP port of health and metrics."""
    name = "listen"
    address, number = config.listen
    inodes = tcp_listeners(number)
    if not inodes:
        return Finding(name, "ok", f"TCP port {number} is free")
    found = {pid: command(pid) for pid in processes(inodes)}
    others = [f"pid {pid} ({line})" for pid, line in found.items() if not line.startswith("kg-")]
    if found and not others:
        return Finding(name, "ok", f"the agent has TCP port {number}")
    taken = (
        f"TCP port {number} is taken by {' and '.join(others) or 'a process that cannot be seen from here'}"
    )
    if not found:
        return Finding(name, "unknown", taken)
    mend = "end that program, or give the agent another port by --listen (and have metrics fetched there)"
    return Finding(name, "warn" if address else "fail", taken, mend)  # at another address it is no obstacle


def cni(config: Config) -> Finding:
    """Whether the kubelet and its runtime will use the file that is kept."""
    name = "cni"
    if not config.cni:
        return Finding(name, "ok", "--cni=false: somebody else configures pods")
    path = Path(config.cni_path)
    if not path.parent.is_dir():
        mend = "install Kubernetes' CNI packages, or give the directory that the runtime reads by --cni-path"
        return Finding(name, "fail", f"there is no directory {path.parent}", mend)
    others = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".conf", ".conflist", ".json"))
    before = [other for other in others if other < path.name]
    if before:
        mend = "remove it if its network is gone, or choose a --cni-path that sorts first"
        return Finding(name, "warn", f"the runtime takes the first file: {before[0]}, not {path.name}", mend)
    if path.name not in others:
        mend = "it is written as soon as the node has a pod CIDR and the agent runs"
        return Finding(name, "warn", f"there is no {path} yet", mend)
    return Finding(name, "ok", f"{path} is the first")


def clashes(config: Config) -> Finding:
    """Whether --subnet is in use by another interface."""
    name = "subnet"
    subnet = ipaddress.ip_network(config.subnet)
    found = []
    for route in routes_of_others(socket.AF_INET):
        network = ipaddress.ip_network(route.dst)
        if route.device != config.interface and network.prefixlen and network.overlaps(subnet):
            found.append(f"{network} on {route.device}")
    if not found:
        return Finding(name, "ok", f"no other interface has a route into {subnet}")
    mend = "give all nodes another --subnet"
    return Finding(name, "warn", f"{subnet} is also reached by {', '.join(found[:3])}", mend)


def other_agents(config: Config) -> Finding:
    """Whether a Go agent runs beside this one: a program kg that is no Python."""
    name = "go agent"
    found = []
    for process in PROC.glob("[0-9]*"):
        try:
            program = os.readlink(process / "exe")
        except OSError:
            continue
        if Path(program.removesuffix(" (deleted)")).name == "kg":
            found.append(process.name)
    if not found:
        return Finding(name, "ok", "no Go agent runs here")
    mend = "end it, with --clean-up=false or by SIGKILL, so that its data plane stays and is taken over"
    return Finding(name, "fail", f"a Go agent runs here too: pid {', '.join(found)}", mend)


def _sysctl(name: str) -> str:
    return "".join(_lines(PROC / "sys" / name.replace(".", "/")))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


CHECKS = (wireguard, encapsulation, forwarding, reverse_path, port, listen, cni, clashes, other_agents)
