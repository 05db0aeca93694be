"""``make demo``: the real agent on four hosts on this machine, and the pages of one of them.

Two hosts share a location, and a LAN; two more are in locations of their own. It shows what happens
as it happens, what the pods see, and what changed on one host, then serves that host's pages on the
machine's loopback until it is interrupted. Exit status 0 if every pod reached every other.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, lambda number, frame: os._exit(130)
    )  # while all this loads, nothing is there

import argparse
import json
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.lab.clean import directory
from tests.lab.cluster import REAL_PORT
from tests.lab.dataplane import snapshot
from tests.lab.host import Host
from tests.lab.mesh import KUBECONFIG, Member, Mesh, NodeSpec
from tests.lab.needs import check_machine
from tests.lab.underlay import API_ADDRESS

NODES = (
    NodeSpec("ada", "berlin"),
    NodeSpec("bob", "berlin"),
    NodeSpec("cleo", "lisbon"),
    NodeSpec("dan", "oslo"),
)
SHOWN = "ada"
FLAGS = ("--encapsulate=never", "--mesh-granularity=location")
TARGET_SECONDS = 10.0
CONVERGE_LIMIT = 60.0
HEALTH_PORT = 1107
HEADINGS = {
    "wireguard": "WireGuard (wg show)",
    "links": "interfaces",
    "routes": "routes",
    "rules": "policy rules",
    "firewall": "iptables (legacy tables)",
    "sets": "ipset",
    "nftables": "nftables",
    "conflist": "CNI configuration (/etc/cni/net.d/10-kilo.conflist)",
}


class Progress:
    """Prints what happens, with the seconds since the demo began."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun:6.2f} s  {text}", flush=True)


def matrix(mesh: Mesh) -> tuple[list[str], bool]:
    """The round trips between all pods as a table, and whether every ping was answered."""
    pings = mesh.pings(2.0)
    names = [member.name for member in mesh]
    lines = ["from \\ to  " + "".join(f"{mesh[name].address:>14}" for name in names)]
    whole = True
    for a in names:
        cells = []
        for b in names:
            whole = whole and (a == b or (a, b) in pings)
            cells.append("-" if a == b else f"{pings[a, b] * 1e3:.1f} ms" if (a, b) in pings else "NO ANSWER")
        lines.append(f"{a:<11}" + "".join(f"{cell:>14}" for cell in cells))
    return lines, whole


def changes(member: Member) -> list[str]:
    """What is on a host that was not there before the agent started, under headings."""
    lines = []
    for part, added in snapshot(member.host).added_since(member.before).items():
        lines.append(f"  {HEADINGS[part]}")
        lines += [f"    + {line}" for line in added if line.strip()]
    return lines


class Forwarder:
    """Connections to a port of this machine's loopback are made again inside ``host``, to ``target``."""

    def __init__(self, host: Host, port: int, target: tuple[str, int]) -> None:
        self._host = host
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        try:
            far = self._host.call(lambda: socket.create_connection(self._target, 5))
        except OSError:
            near.close()
            return
        back = threading.Thread(target=self._copy, args=(far, near), daemon=True)
        back.start()
        self._copy(near, far)
        back.join()
        near.close()
        far.close()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def show_failure(mesh: Mesh, say: Progress) -> None:
    """What each agent last said, for whoever must find out why the mesh did not come up."""
    for member in mesh:
        say(f"the last words of {member.name}'s agent:")
        for line in member.agent.log()[-8:]:
            print(f"          {json.dumps(line)[:200]}")


def run(options: argparse.Namespace, say: Progress) -> int:
    with ExitStack() as stack:
        logs = Path(stack.enter_context(directory()))
        mesh = stack.enter_context(Mesh(NODES, logs, FLAGS, say, standin=False))
        try:
            took = mesh.converge(CONVERGE_LIMIT)
        except TimeoutError as e:
            say(str(e))
            show_failure(mesh, say)
            return 1
        say(f"converged {took:.2f} s after the agents' start (target: within {TARGET_SECONDS:g} s)")
        lines, whole = matrix(mesh)
        print("\nPings between pods:", *lines, sep="\n  ")
        print(f"\nNew on {SHOWN} since before the agent started:", *changes(mesh[SHOWN]), sep="\n")
        if options.once or not whole:
            return 0 if whole else 1
        forwarder = Forwarder(mesh[SHOWN].host, options.port, ("127.0.0.1", HEALTH_PORT))
        stack.callback(forwarder.close)
        address = f"http://127.0.0.1:{forwarder.port}"
        print(f"\nThe pages of {SHOWN}: {address}/  {address}/graph  {address}/metrics  {address}/health")
        shell = f"nsenter -a -t {mesh[SHOWN].host.pid} env PATH={Path(sys.executable).parent}:$PATH"
        print(f"A shell on it, with kg: {shell} KILO_ENCAPSULATE=never KILO_KUBECONFIG={KUBECONFIG} bash")
        tell_kubectl(mesh, logs / "admin.kubeconfig", stack)
        print("Ctrl-C ends the demo and removes everything.", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    say("nothing is left")
    return 0


def tell_kubectl(mesh: Mesh, path: Path, stack: ExitStack) -> None:
    """How to look at the cluster as its administrator, for as long as the demo runs."""
    api = Forwarder(mesh.underlay.api, 0, (API_ADDRESS, REAL_PORT))
    stack.callback(api.close)
    if mesh.cluster.admin_kubeconfig(path, api.port):
        print(f"The cluster, for its administrator: kubectl --kubeconfig {path} get nodes,peers")


def stop(number: int, frame: object) -> None:
    """The first SIGINT, wherever it arrives: said at once, also in the middle of another line."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.write(1, b"\nstopping; removing everything\n")
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs kg on four hosts made of namespaces.")
    parser.add_argument("--once", action="store_true", help="end after the matrix, with status 0 or 1")
    parser.add_argument("--port", type=int, default=HEALTH_PORT, help="where to serve the pages of one host")
    options = parser.parse_args()
    check_machine()
    if not options.once:
        try:
            socket.create_server(("127.0.0.1", options.port)).close()
        except OSError as e:
            sys.exit(f"cannot serve on 127.0.0.1:{options.port}: {e.strerror}; choose another with --port")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    say = Progress()
    try:
        signal.signal(signal.SIGINT, stop)  # a shell's background job has it ignored
        return run(options, say)
    except KeyboardInterrupt:
        say("nothing is left")
        return 130


if __name__ == "__main__":
    sys.exit(main())
