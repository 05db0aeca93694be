"""Kubernetes API servers for tests, the demo and the benchmark.

``start_apiserver`` gives a real one where etcd and kube-apiserver are installed, else the stand-in;
``Standin`` always the stand-in, which can also fail on demand. As a process of its own, for
instance in a network namespace: ``python -m tests.apiserver --help``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tests.apiserver.admin import Admin, AdminError
from tests.apiserver.real import RealServer, find_assets
from tests.apiserver.standin import Standin

CRDS_FILE = Path(__file__).parents[2] / "deploy" / "crds.yaml"

__all__ = ["CRDS_FILE", "Admin", "AdminError", "ApiServer", "RealServer", "Standin", "start_apiserver"]


class ApiServer(Protocol):
    """What a stand-in and a real server have in common."""

    @property
    def url(self) -> str: ...

    def kubeconfig(self, path: Path) -> str:
        """Write an agent's kubeconfig to ``path``; its path as text."""

    def admin(self) -> Admin:
        """A new client that may do everything."""

    def stop(self) -> None: ...


def start_apiserver(
    directory: Path, address: tuple[str, int] = ("127.0.0.1", 0), standin: bool = False, crd: bool = True
) -> ApiServer:
    """A running server: a real one if installed and not ``standin``. ``directory`` is for its files.

    ``crd``: with Peers defined. The caller stops it.
    """
    assets = None if standin else find_assets()
    if assets is None:
        stand_in = Standin(address, crd=False)
        stand_in.start()
    server: ApiServer = stand_in if assets is None else RealServer(assets, directory, address)
    if isinstance(server, RealServer):
        server.start()
    if crd:
        admin = server.admin()
        admin.create_crd(CRDS_FILE)
        admin.close()
    return server
