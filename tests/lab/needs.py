"""What the lab needs of the machine: root, namespaces, and Debian packages."""

from __future__ import annotations

import os
import shutil
import sys

PROGRAMS = {
    "wireguard-go": "wireguard-go",
    "wg": "wireguard-tools",
    "ip": "iproute2",
    "iptables-legacy": "iptables",
    "ipset": "ipset",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "dot": "graphviz",
}
"""Program to the Debian package that has it."""


def missing() -> list[str]:
    """One line for each thing that the machine lacks."""
    if os.geteuid() != 0:
        return ["root is needed, to make network namespaces"]
    found = []
    packages = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if packages:
        found.append(f"Debian packages are missing; run: apt-get install {' '.join(packages)}")
    if not os.path.exists("/dev/net/tun"):
        found.append("/dev/net/tun is missing, which wireguard-go needs; run: modprobe tun")
    return found


def check_machine() -> None:
    """End the program with a clear message if the machine lacks something."""
    if lines := missing():
        sys.exit("\n".join(["the lab cannot run here:", *lines]))
