"""Requests of a user that acts as another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilo.errors import PermanentError
from kilo.watcher.client import Api
from tests.apiserver.kubeconfig import write_kubeconfig
from tests.unit.watcher.asking import JANE, NODES, Connect
from tests.unit.watcher.oddserver import OddServer


def impersonated(head: str) -> list[str]:
    """The headers by which a request acts as another user, with their names in lower case, sorted."""
    pairs = [line.partition(": ") for line in head.split("\r\n")[1:]]
    return sorted(f"{n.lower()}: {v}" for n, _, v in pairs if n.lower().startswith("impersonate-"))


AS_JANE = [
    "impersonate-extra-acme.example%2fx: 50%",
    "impersonate-extra-scopes: edit",
    "impersonate-extra-scopes: view",
    "impersonate-group: dev",
    "impersonate-group: ops, night",
    "impersonate-uid: 7",
    "impersonate-user: jane",
]


def test_user_that_acts_as_another_says_so_at_every_request(
    certificates: Path, verified: OddServer, tmp_path: Path, connect: Connect
) -> None:
    ca = str(certificates / "server.crt")
    api = connect(write_kubeconfig(tmp_path / "kubeconfig", verified.url, ca=ca, user=JANE))
    api.get(NODES, {}, "list nodes")
    stream = api.stream(NODES, {"watch": "1"}, "watch nodes", 5)
    list(stream.batches())
    stream.close()
    api.patch(f"{NODES}/own", {}, "patch node own")
    api.clock(NODES, {}, "list nodes")
    assert [impersonated(head) for head in verified.requests] == [AS_JANE] * 4
    assert all("Authorization: Bearer t\r\n" in head for head in verified.requests)


def test_user_acts_as_another_after_a_change_of_the_kubeconfig(
    certificates: Path, verified: OddServer, tmp_path: Path, connect: Connect
) -> None:
    ca, path = str(certificates / "server.crt"), tmp_path / "kubeconfig"
    api = connect(write_kubeconfig(path, verified.url, ca=ca, token="t"))
    api.get(NODES, {}, "list nodes")
    write_kubeconfig(path, verified.url, ca=ca, user={"token": "t", "as": "jane"})
    api.get(NODES, {}, "list nodes")
    assert [impersonated(head) for head in verified.requests] == [[], ["impersonate-user: jane"]]


def test_user_that_acts_as_another_over_plain_http_is_refused(tmp_path: Path) -> None:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1", user=JANE)
    with pytest.raises(PermanentError, match="user 'u': as is for servers with https:// only"):
        Api(kubeconfig, "")
