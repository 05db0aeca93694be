"""API servers for the watcher's tests, each emptied after every test that used it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apiserver import CRDS_FILE, ApiServer, Standin, start_apiserver
from tests.apiserver.store import NODES, PEERS


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
def standin() -> Iterator[Standin]:
    """A stand-in of the test's own, to be tormented."""
    with Standin(bookmark_period=0.2) as standin:
        yield standin
