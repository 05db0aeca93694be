"""``kg plan``: what would be planned, from the output of ``kubectl get -o json``, with no cluster.

No privilege, no network, nothing imported that a plan does not need. Exit status: 0; 1 where nothing
can be planned for the node that ``--hostname`` names; 2 for a bad flag, or input that cannot be used.
With ``--diff`` a plan is compared with the kernel, by kilo.cli.diff.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import msgspec

from kilo import graph
from kilo.cli.help import of_command
from kilo.cli.planinput import OWN_FLAGS, Cluster, Request, read, request_of, tell
from kilo.config import settings_of
from kilo.errors import KiloError
from kilo.mesh.claims import limited, settle
from kilo.mesh.describe import PRIVATE, TUNNEL, describe, peer_views
from kilo.mesh.firewall import SETS, firewall
from kilo.mesh.refused import refuse_unroutable
from kilo.mesh.routes import routes
from kilo.mesh.topology import CannotPlan, Topology, build
from kilo.mesh.unreachable import unused_endpoints
from kilo.mesh.wireguard import conf
from kilo.model.plan import Route
from kilo.model.settings import Settings
from kilo.watcher.translate import MAX_KEEPALIVE

NAMES_TOLD = 30
NOT_READY = "local node is not ready"


def main(argv: Sequence[str]) -> int:
    """Run ``kg plan`` with these arguments; its exit status."""
    if any(word in ("-h", "-help", "--help") for word in argv):
        print(of_command("plan", OWN_FLAGS))
        return 0
    try:
        request = request_of(argv)
        cluster = read(request) if request.nodes else None
    except KiloError as e:
        tell(str(e))
        return 2
    if request.diff:
        status: int = import_module("kilo.cli.diff").main(request, cluster)
        return status
    return _plan(cluster or Cluster(), request)


def _plan(cluster: Cluster, request: Request) -> int:
    settings = settings_of(request.config)
    expected: dict[str, Any] = {
        "ready_nodes": sorted(cluster.nodes),
        "ready_peers": sorted(cluster.peers),
        "rejected_peers": sorted(cluster.rejected_peers),
    }
    topology: Topology | None = None
    if settings.hostname not in cluster.nodes:
        expected["error"] = NOT_READY
        tell(_why_not(cluster, request))
    else:
        try:
            topology = build(cluster.nodes.values(), cluster.peers.values(), settings)
        except CannotPlan as e:
            expected["error"] = str(e)
            tell(str(e))
    if topology is not None:
        refused = refuse_unroutable(cluster.nodes.values(), cluster.peers.values()).conflicts
        settled = settle(topology, settings)
        unused = unused_endpoints(settled.topology)
        for conflict in limited(refused | settled.conflicts | unused).values():
            tell(conflict)
    if request.format == "json":
        if topology is not None:
            interface, key = request.config.interface, request.private_key
            expected["topology"] = describe(topology, settings, interface, key, request.connect)
        print(json.dumps(expected, indent=2, sort_keys=True))
    elif topology is not None and request.format == "wireguard" and not topology.leader:
        leads = topology.own.hostnames[topology.own.leader]
        tell(
            f"node {settings.hostname} does not lead {topology.location}, and has no WireGuard peers; "
            f"node {leads} leads it: give --hostname={leads}"
        )
    elif topology is not None:
        print(_PRINTERS[request.format](topology, settings, request), end="")
    return 0 if topology is not None else 1


def _why_not(cluster: Cluster, request: Request) -> str:
    """Why there is no plan for the local node, and what to do about it."""
    name = request.config.hostname
    reason = cluster.left_out.get(name)
    if reason is None:
        names = cluster.names()
        if not names:
            return f"no node is named {name!r}: {request.nodes} holds none"
        more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
        return f"no node is named {name!r}; --hostname takes one of: {', '.join(names[:NAMES_TOLD])}{more}"
    text = f"nothing can be planned for node {name}: {reason.place}: {reason.reason}"
    if reason.field == "last-seen" and (at := cluster.last_seen.get(name)):
        text += f"; --at {at} plans for when it last checked in"
    return text


def _print_wireguard(topology: Topology, settings: Settings, request: Request) -> str:
    text = conf(_usable(topology), settings.port, request.private_key)
    if request.private_key:
        return text
    return text.replace("[Interface]\n", "[Interface]\n# PrivateKey: give --private-key FILE\n", 1)


def _usable(topology: Topology) -> Topology:
    """With no keepalive for the local node where its own is one that the kernel, and ``wg``, refuse."""
    local = topology.local
    if 0 <= local.persistent_keepalive <= MAX_KEEPALIVE:
        return topology
    return replace(topology, local=msgspec.structs.replace(local, persistent_keepalive=0))


def _print_routes(topology: Topology, settings: Settings, request: Request) -> str:
    """As ``ip route`` and ``ip rule`` write them."""
    devices = {"wireguard": request.config.interface, "private": PRIVATE, "tunnel": TUNNEL}
    found, rules = routes(topology, settings)
    distinct: dict[str, Route] = {}
    for route in found:
        distinct.setdefault(route.key, route)
    lines = ["# ip route"]
    for route in distinct.values():
        via = f" via {route.via}" if route.via else ""
        table = f" table {route.table}" if route.table else ""
        src = f" src {route.src}" if route.src else ""
        onlink = " onlink" if route.onlink else ""
        lines.append(f"{route.dst}{via} dev {devices[route.device]}{table}{src}{onlink}")
    lines.append("# ip rule")
    for rule in rules:
        to = f" to {rule.dst}" if rule.dst else ""
        iif = f" iif {devices[rule.iif]}" if rule.iif else ""
        lines.append(f"from {rule.src or 'all'}{to}{iif} lookup {rule.table}")
    return "\n".join(lines) + "\n"


def _print_firewall(topology: Topology, settings: Settings, request: Request) -> str:
    wall = firewall(topology, settings)
    lines = []
    for name in SETS:
        lines.append(f"{name}:")
        lines += [f"  {network}" for network in sorted(wall.sets[name])]
    guard = "accepted from ipip_accept_from alone" if wall.ipip_guard else "not looked at"
    return "\n".join([*lines, f"IPIP packets: {guard}", ""])


def _print_dot(topology: Topology, settings: Settings, request: Request) -> str:
    return graph.dot(topology.segments, peer_views(topology), topology.subnet)


_PRINTERS: dict[str, Callable[[Topology, Settings, Request], str]] = {
    "wireguard": _print_wireguard,
    "routes": _print_routes,
    "firewall": _print_firewall,
    "dot": _print_dot,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
