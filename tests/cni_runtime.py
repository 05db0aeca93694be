"""A small CNI runtime: attaches a network namespace through a configuration list, as a kubelet would.

For tests and the demo. Plugins are chained as the specification says: each is given the network's
name and version and the result of the one before, on its standard input. A host may be a network
namespace itself: the plugins are then run inside it, and ``data_dir`` keeps its leases apart.
https://github.com/containernetworking/cni/blob/spec-v0.4.0/SPEC.md
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLUGIN_DIR = "/usr/lib/cni"
TIMEOUT = 20.0


class CniError(Exception):
    """A plugin failed; the text has its name and what it said."""


@dataclass(frozen=True)
class Attachment:
    """What to attach, where: the list, the pod's namespace (a name of ip-netns), and its host.

    ``host``: name of the network namespace that is the host, "" for this one. ``data_dir``: where
    host-local keeps its leases, "" for its default; one for each host.
    ``runtime_config``: what is passed to plugins that have the capability, such as portMappings.
    """

    conflist: Path
    netns: str
    container_id: str
    ifname: str = "eth0"
    host: str = ""
    data_dir: str = ""
    runtime_config: Mapping[str, Any] | None = None


def attach(attachment: Attachment) -> dict[str, Any]:
    """Run ADD of every plugin in order; the last one's result. Raises CniError."""
    result: dict[str, Any] = {}
    network = json.loads(attachment.conflist.read_text())
    for plugin in network["plugins"]:
        result = _run("ADD", attachment, network, plugin, result)
    return result


def detach(attachment: Attachment) -> None:
    """Run DEL of every plugin in reverse order. Raises CniError."""
    network = json.loads(attachment.conflist.read_text())
    for plugin in reversed(network["plugins"]):
        _run("DEL", attachment, network, plugin, {})


def addresses(result: Mapping[str, Any]) -> list[str]:
    """The addresses (``address/length``) of an ADD's result."""
    return [ip["address"] for ip in result.get("ips", [])]


def _run(
    command: str,
    attachment: Attachment,
    network: Mapping[str, Any],
    plugin: Mapping[str, Any],
    previous: Mapping[str, Any],
) -> dict[str, Any]:
    config = {**plugin, "cniVersion": network["cniVersion"], "name": network["name"]}
    if previous:
        config["prevResult"] = previous
    if "ipam" in plugin and attachment.data_dir:
        config["ipam"] = {**plugin["ipam"], "dataDir": attachment.data_dir}
    wanted = {
        name: value
        for name, value in (attachment.runtime_config or {}).items()
        if plugin.get("capabilities", {}).get(name)
    }
    if wanted:
        config["runtimeConfig"] = wanted
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attachment.container_id,
        "CNI_NETNS": f"/run/netns/{attachment.netns}",
        "CNI_IFNAME": attachment.ifname,
        "CNI_PATH": PLUGIN_DIR,
    }
    program = [f"{PLUGIN_DIR}/{plugin['type']}"]
    if attachment.host:
        program = ["ip", "netns", "exec", attachment.host, *program]
    done = subprocess.run(
        program, input=json.dumps(config), env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    if done.returncode:
        raise CniError(f"{plugin['type']} {command}: {done.stdout.strip()} {done.stderr.strip()}")
    return json.loads(done.stdout) if done.stdout.strip() else {}
