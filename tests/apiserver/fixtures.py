"""API servers for the watcher's tests, each emptied after every test that used it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kilo.watcher.client import Api
from tests.apiserver import CRDS_FILE, ApiServer, Standin, start_apiserver
from tests.apiserver.store import NODES, PEERS
from tests.unit.watcher.asking import Connect
from tests.unit.watcher.certificates import certify, server_context
from tests.unit.watcher.oddserver import OddServer, whole


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    server = start_apiserver(tmp_path_factory.mktemp("api"))
    yield server
    server.stop()


@pytest.fixture
def server(running_server: ApiServer) -> Iterator[ApiServer]:
    """An empty server with Peers defined: a real one where it is installed, else the stand-in."""
    yield running_server
    admin = running_server.admin()
    admin.create_crd(CRDS_FILE)
    for kind in (NODES, PEERS):
        for item in admin.list(kind):
            admin.delete(kind, item["metadata"]["name"])
    admin.close()


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda kubeconfig, master="": stack.enter_context(closing(Api(str(kubeconfig), master)))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client"):
        certify(directory, name)
    return directory


@pytest.fixture
def secure(certificates: Path) -> Iterator[OddServer]:
    """A server that admits the client of ``certificates``, and nobody else."""
    server = certificates / "server.crt", certificates / "server.key"
    context = server_context(server, certificates / "client.crt")
    with closing(OddServer(lambda request: iter([whole(b"{}")]), context)) as odd:
        yield odd


@pytest.fixture
def verified(certificates: Path) -> Iterator[OddServer]:
    """A server with the certificate ``server``, which admits everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    with closing(OddServer(lambda request: iter([whole(b"{}")]), context)) as odd:
        yield odd


@pytest.fixture
def standin() -> Iterator[Standin]:
    """A stand-in of the test's own, to be tormented."""
    with Standin(bookmark_period=0.2) as standin:
        yield standin
