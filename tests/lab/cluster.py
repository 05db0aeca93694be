"""The API server of a lab, on its own host, and the operator's hand on it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tests.apiserver import CRDS_FILE
from tests.apiserver.admin import PREFIX, Admin
from tests.apiserver.kubeconfig import write_kubeconfig
from tests.apiserver.real import ADMIN, RealServer, find_assets
from tests.apiserver.standin import FAULTS_AFTER, FAULTS_PATH
from tests.apiserver.store import NODES, PEERS
from tests.lab.agents import MODULE_PATH
from tests.lab.host import Host, wait_until
from tests.lab.namespaces import ALL
from tests.lab.underlay import API_ADDRESS

T = TypeVar("T")
PORT, REAL_PORT = 8080, 6443


class Cluster:
    """The Kubernetes API on ``host``, whose address is ``address``.

    A stand-in in a process of its own, which keeps its state over restarts; or, if ``standin`` is
    off and etcd and kube-apiserver are installed, those, which start once. ``directory`` is for files.
    """

    def __init__(self, host: Host, directory: Path, address: str = API_ADDRESS, standin: bool = True) -> None:
        self.host = host
        self._address = address
        self._state = directory / "api-state"
        self._state.unlink(missing_ok=True)
        self._lock = threading.Lock()
        self._real: RealServer | None = None
        kubeconfig = directory / "kubeconfig"
        assets = None if standin else find_assets()
        if assets:
            self._start_real(RealServer(assets, directory / "api", (address, REAL_PORT)), kubeconfig)
        else:
            self.url = f"http://{address}:{PORT}"
            self.description = f"a stand-in at {self.url}"
            self._admin = Admin(self.url)
            write_kubeconfig(kubeconfig, self.url)
            self.start()
        self.kubeconfig = kubeconfig.read_text()
        """The text of a kubeconfig for the agents."""

    def _start_real(self, server: RealServer, kubeconfig: Path) -> None:
        self._real = server
        try:
            self.host.call(server.start, ALL)
        except BaseException:
            server.give_up()
            raise
        self.url = server.url
        self.description = f"kube-apiserver at {self.url}"
        self._admin = server.admin()
        server.kubeconfig(kubeconfig)
        self.do(lambda admin: admin.create_crd(CRDS_FILE))

    def admin_kubeconfig(self, path: Path, port: int) -> bool:
        """Write a kubeconfig that may do everything, for whom the server is at ``port`` of 127.0.0.1. False
        for a stand-in, which kubectl does not understand."""
        if self._real is None:
            return False
        self._real.kubeconfig(path, ADMIN, f"https://127.0.0.1:{port}")
        return True

    def start(self) -> None:
        """Start the server with the state that it had, and wait until it answers."""
        command = [sys.executable, "-m", "tests.apiserver.standin", "--state", str(self._state)]
        self.process = self.host.start(
            [*command, "--listen", f"{self._address}:{PORT}"], "api.log", MODULE_PATH
        )

        def answers() -> bool:
            try:
                self.do(lambda admin: admin.list(NODES))
            except OSError:
                return False
            return True

        wait_until(answers, 20, "the API server answers")

    def stop(self) -> None:
        """End the server, so that connections to it are refused."""
        self.process.terminate()
        self.process.wait(10)

    def freeze(self) -> None:
        """Let the server accept and answer nothing, as one behind a broken path."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def fault(self, *calls: tuple[Any, ...]) -> None:
        """Let the stand-in fail: names of its methods, each with its arguments. They are in force then."""
        self.do(lambda admin: admin.request("POST", FAULTS_PATH, list(calls)))
        time.sleep(2 * FAULTS_AFTER)

    def close(self) -> None:
        self._admin.close()
        if self._real:
            self._real.stop()

    def do(self, action: Callable[[Admin], T]) -> T:
        """Run ``action`` with a client on the server's host. Any thread may call it."""
        with self._lock:
            try:
                return self.host.call(lambda: action(self._admin))
            except OSError:
                self._admin.close()
                raise

    def create_node(
        self, name: str, pod_cidr: str, labels: Mapping[str, str], annotations: Mapping[str, str]
    ) -> None:
        """Create a Node object; a real one always has annotations of others, so this has one too."""
        given = {"node.alpha.kubernetes.io/ttl": "0", **annotations}
        self.do(lambda admin: admin.create_node(name, given, pod_cidr, labels))

    def delete_node(self, name: str) -> None:
        self.do(lambda admin: admin.delete_node(name))

    def annotate(self, name: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations of a node, named without Kilo's prefix; None removes one."""
        values = {PREFIX + key: value for key, value in annotations.items()}
        self.do(lambda admin: admin.patch(NODES, name, {"metadata": {"annotations": values}}))

    def label(self, name: str, key: str, value: str) -> None:
        self.do(lambda admin: admin.patch(NODES, name, {"metadata": {"labels": {key: value}}}))

    def annotations(self, name: str) -> dict[str, str]:
        """Kilo's annotations of a node, named without the prefix."""
        return self.do(lambda admin: admin.annotations(name))

    def create_peer(self, name: str, **spec: Any) -> None:
        """Create a Peer resource with that spec."""
        self.do(lambda admin: admin.create_peer(name, **spec))

    def delete_peer(self, name: str) -> None:
        self.do(lambda admin: admin.delete(PEERS, name))
