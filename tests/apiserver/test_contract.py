"""What agents rely on, asked of the stand-in and, where it is installed, of a real server: the same tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kilo.watcher.client import Api, ApiError
from tests.apiserver import CRDS_FILE, Admin, AdminError, ApiServer, Standin, start_apiserver
from tests.apiserver.real import find_assets
from tests.apiserver.store import CRD, CRDS, NODES, PEERS

ROOT = Path(__file__).parents[2]
SERVERS = ["standin"] + (["real"] if find_assets() else [])
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
PEER = {"publicKey": "x", "allowedIPs": ["10.5.0.1/32"]}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    server = start_apiserver(tmp_path_factory.mktemp("api"), standin=request.param == "standin")
    yield server
    server.stop()


@pytest.fixture
def admin(server: ApiServer) -> Iterator[Admin]:
    with closing(server.admin()) as admin:
        yield admin
        admin.create_crd(CRDS_FILE)
        for kind in (NODES, PEERS):
            for item in admin.list(kind):
                admin.delete(kind, item["metadata"]["name"])


@pytest.fixture
def api(server: ApiServer, tmp_path: Path) -> Iterator[Api]:
    with closing(Api(server.kubeconfig(tmp_path / "kubeconfig"), "")) as api:
        yield api


def listed(api: Api, **query: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(api.get(NODES.path, query, "list nodes"))
    return value


def watch(api: Api, count: int, path: str = NODES.path, **query: str) -> list[dict[str, Any]]:
    """The first ``count`` events of a watch."""
    stream = api.stream(path, {"watch": "1", "timeoutSeconds": "20", **query}, "watch", 30)
    events: list[dict[str, Any]] = []
    try:
        for batch in stream.batches():
            events += [json.loads(line) for line in batch if line]
            if len(events) >= count:
                break
    finally:
        stream.close()
    return events


def summary(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]


def test_a_list_has_a_version_from_which_a_watch_goes_on(admin: Admin, api: Api) -> None:
    admin.create_node("a")
    version = listed(api)["metadata"]["resourceVersion"]
    admin.create_node("b")
    admin.annotate("a", key="x")
    admin.delete_node("b")
    events = watch(api, 3, resourceVersion=version)
    assert summary(events) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))
    assert versions[0] > int(version)


def test_pages_are_one_consistent_list(admin: Admin, api: Api) -> None:
    for number in range(7):
        admin.create_node(f"n{number}")
    first = listed(api, limit="3")
    admin.delete_node("n6")
    names, page = [i["metadata"]["name"] for i in first["items"]], first
    while token := page["metadata"].get("continue"):
        page = listed(api, limit="3", **{"continue": token})
        names += [item["metadata"]["name"] for item in page["items"]]
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert names == [f"n{i}" for i in range(7)]
    assert "continue" not in listed(api)["metadata"]


def test_a_watch_ends_after_the_time_asked_for(api: Api) -> None:
    stream = api.stream(NODES.path, {"watch": "1", "timeoutSeconds": "1"}, "watch nodes", 10)
    assert list(stream.batches()) == []
    stream.close()


def test_initial_events_end_with_a_bookmark_that_says_so(admin: Admin, api: Api) -> None:
    admin.create_node("a")
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    events = watch(api, 2, **query)
    assert summary(events) == [("ADDED", "a"), ("BOOKMARK", "")]
    assert events[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


@pytest.mark.parametrize("as_status", [False, True])
def test_a_version_that_is_too_old_is_410_in_either_form(tmp_path: Path, as_status: bool) -> None:
    with Standin() as standin, closing(Api(standin.kubeconfig(tmp_path / "kubeconfig"), "")) as api:
        standin.change(lambda s: s.create(NODES, {"metadata": {"name": "a"}}))
        standin.compact(as_status)
        if as_status:
            with pytest.raises(ApiError) as caught:
                watch(api, 1, resourceVersion="1")
            assert caught.value.status == 410
        else:
            event = watch(api, 1, resourceVersion="1")[0]
            assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


def test_the_three_kinds_of_patch(admin: Admin) -> None:
    admin.create_node("a", {"key": "x", "leader": ""})
    annotations = {"kilo.squat.ai/key": "y", "kilo.squat.ai/leader": None}
    patch = {"metadata": {"annotations": annotations}}
    admin.patch(NODES, "a", patch)
    assert admin.annotations("a") == {"key": "y"}
    admin.request(
        "PATCH", f"{NODES.path}/a", {"metadata": {"annotations": {"kilo.squat.ai/key": "z"}}}, STRATEGIC
    )
    assert admin.annotations("a") == {"key": "z"}
    path = "/metadata/annotations/kilo.squat.ai~1key"
    admin.request("PATCH", f"{NODES.path}/a", [{"op": "remove", "path": path}], JSON_PATCH)
    assert admin.annotations("a") == {}
    with pytest.raises(AdminError) as caught:
        admin.request("PATCH", f"{NODES.path}/a", [{"op": "remove", "path": path}], JSON_PATCH)
    assert caught.value.status == 422


def test_a_patch_that_changes_nothing_makes_no_version(admin: Admin) -> None:
    before = admin.create_node("a", {"key": "x"})
    assert (
        admin.annotate("a", key="x")["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    )


def test_what_is_not_there_is_404_and_what_is_there_409(admin: Admin) -> None:
    admin.create_node("a")
    for status, request in (
        (404, lambda: admin.get(NODES, "b")),
        (404, lambda: admin.annotate("b", key="x")),
        (404, lambda: admin.delete_node("b")),
        (409, lambda: admin.create_node("a")),
    ):
        with pytest.raises(AdminError) as caught:
            request()
        assert caught.value.status == status


def test_an_update_of_an_old_version_is_a_conflict(admin: Admin) -> None:
    value = admin.create_node("a")
    admin.annotate("a", key="x")
    with pytest.raises(AdminError) as caught:
        admin.request("PUT", f"{NODES.path}/a", value)
    assert caught.value.status == 409
    value["metadata"].pop("resourceVersion")
    assert admin.request("PUT", f"{NODES.path}/a", value)["metadata"]["uid"] == value["metadata"]["uid"]


def test_peers_come_and_go_with_their_definition(admin: Admin, api: Api) -> None:
    admin.create_peer("p", **PEER)
    assert admin.get(CRDS, CRD)["metadata"]["name"] == CRD
    version = json.loads(api.get(PEERS.path, {}, "list peers"))["metadata"]["resourceVersion"]
    admin.create_peer("q", **PEER)
    assert summary(watch(api, 1, PEERS.path, resourceVersion=version)) == [("ADDED", "q")]
    admin.delete_crd()
    with pytest.raises(ApiError) as caught:
        for _ in range(200):  # a real server needs a moment
            api.get(PEERS.path, {}, "list peers")
    assert caught.value.status == 404
    admin.create_crd(CRDS_FILE)
    assert admin.list(PEERS) == []


def test_a_standin_process_keeps_its_objects_over_a_restart(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.apiserver.standin", "--listen", "127.0.0.1:0"]
    command += ["--state", str(tmp_path / "state"), "--kubeconfig", str(tmp_path / "kubeconfig")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    version = ""
    for expected in ([], ["a"]):
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, cwd=tmp_path) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"listening on http://127.0.0.1:")
            with closing(Admin.of(tmp_path / "kubeconfig")) as admin:
                assert [item["metadata"]["name"] for item in admin.list(NODES)] == expected
                if expected:
                    assert admin.get(NODES, "a")["metadata"]["resourceVersion"] == version
                else:
                    version = admin.create_node("a")["metadata"]["resourceVersion"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def test_a_server_process_says_when_it_is_ready(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.apiserver", "--listen", "127.0.0.1:0", "--standin"]
    command += ["--kubeconfig", str(tmp_path / "agent"), "--admin-kubeconfig", str(tmp_path / "admin")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"listening on http://127.0.0.1:")
        with closing(Admin.of(tmp_path / "admin")) as admin:
            admin.create_peer("p", **PEER)
        with closing(Api(str(tmp_path / "agent"), "")) as api:
            assert b'"p"' in api.get(PEERS.path, {}, "list peers")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
