from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kilo.errors import PermanentError
from kilo.watcher.client import Api, ApiError
from tests.apiserver import Admin, Standin
from tests.apiserver.kubeconfig import write_kubeconfig

ROOT = Path(__file__).parents[3]
NODES = "/api/v1/nodes"


Connect = Callable[..., Api]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda kubeconfig, master="": stack.enter_context(closing(Api(str(kubeconfig), master)))


@pytest.fixture
def api(standin: Standin, tmp_path: Path, connect: Connect) -> Api:
    return connect(standin.kubeconfig(tmp_path / "kubeconfig"))


@pytest.fixture
def admin(standin: Standin) -> Iterator[Admin]:
    with closing(standin.admin()) as admin:
        yield admin


def failure(api: Api, path: str = NODES) -> ApiError:
    with pytest.raises(ApiError) as caught:
        api.get(path, {}, "list nodes")
    return caught.value


def python(code: str, *prefix: str, **environment: str) -> str:
    """What a new interpreter prints."""
    command = [*prefix, sys.executable, "-c", textwrap.dedent(code)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_what_is_needed_of_the_official_client_is_loaded(tmp_path: Path) -> None:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1", "secret")
    out = python(f"""
        import sys
        from kilo.watcher.client import Api
        api = Api({kubeconfig!r}, "")
        assert api.credentials() == {{"authorization": "Bearer secret"}}, api.credentials()
        heavy = ("kubernetes", "pydantic", "requests_oauthlib", "oauthlib", "websocket", "aiohttp")
        print(*sorted(m for m in sys.modules if m.split(".")[0] in heavy))
        import kubernetes
        print(kubernetes.client.V1Node.__name__)
    """)
    assert out.splitlines() == ["", "V1Node"], "and who wants the whole of it later can have it"


def test_where_the_lean_way_fails_the_whole_package_is_loaded(tmp_path: Path) -> None:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1", "secret")
    out = python(f"""
        from kilo.watcher import official
        def fail(root): raise ImportError
        official._load_lean = fail
        from kilo.watcher.client import Api
        print(Api({kubeconfig!r}, "").credentials()["authorization"])
    """)
    assert out == "Bearer secret\n"


def test_in_cluster_the_service_account_is_read_and_read_again(tmp_path: Path) -> None:
    out = python(
        """
        import os, pathlib, datetime
        files = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
        files.mkdir(parents=True)
        (files / "ca.crt").write_text("none")
        (files / "token").write_text("first")
        from kilo.watcher.client import Api
        api = Api("", "")
        print(api.server, api.credentials()["authorization"])
        (files / "token").write_text("second")
        real = datetime.datetime
        class Later(real):
            @classmethod
            def now(cls, tz=None): return real.now(tz) + datetime.timedelta(minutes=2)
        datetime.datetime = Later
        print(api.credentials()["authorization"])
        """,
        *["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh"],
        KUBERNETES_SERVICE_HOST="2001:db8::1",
        KUBERNETES_SERVICE_PORT="443",
    )
    assert out.splitlines() == ["https://[2001:db8::1]:443 bearer first", "bearer second"]


def test_outside_a_cluster_and_without_flags_it_says_which_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(PermanentError, match="--kubeconfig or --master"):
        Api("", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "just text",
        "[]",
        "a: [",
        "{}",
        '{"clusters": []}',
        '{"current-context": "x", "contexts": 5}',
    ],
)
def test_a_damaged_kubeconfig_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(PermanentError, match=str(path)):
        Api(str(path), "")


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"--kubeconfig: .*/nothing does not exist"):
        Api(str(tmp_path / "nothing"), "")


def test_master_overrides_the_server(standin: Standin, tmp_path: Path, connect: Connect) -> None:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1", "secret")
    standin.admit("secret")
    api = connect(kubeconfig, standin.url + "/")
    assert api.server == standin.url
    assert b"NodeList" in api.get(NODES, {}, "list nodes")


def test_master_alone_needs_no_kubeconfig(standin: Standin, connect: Connect) -> None:
    assert b"NodeList" in connect("", standin.url).get(NODES, {}, "list nodes")


def test_tls_is_verified_unless_told_otherwise(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    write_kubeconfig(kubeconfig, "https://127.0.0.1:1")
    assert Api(str(kubeconfig), "").verified
    config = json.loads(kubeconfig.read_text())
    config["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
    kubeconfig.write_text(json.dumps(config))
    assert not Api(str(kubeconfig), "").verified


def test_client_certificates_are_taken_from_the_kubeconfig(tmp_path: Path) -> None:
    user: dict[str, object] = {
        "client-certificate-data": base64.b64encode(b"certificate").decode(),
        "client-key-data": base64.b64encode(b"key").decode(),
    }
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1", user=user)
    out = python(f"""
        from kilo.watcher.client import Api
        pool = Api({kubeconfig!r}, "")._pool
        for name in ("cert_file", "key_file"):
            print(open(pool.connection_pool_kw[name]).read())
    """)
    assert out.split() == ["certificate", "key"]


def exec_user(script: Path, body: str) -> dict[str, object]:
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}


def test_an_exec_plugin_is_run_and_run_again_when_its_token_expires(
    standin: Standin, tmp_path: Path, connect: Connect
) -> None:
    answer = '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":%s}'
    status = '{"token":"token-$N","expirationTimestamp":"2020-01-01T00:00:00Z"}'
    quoted = (answer % status).replace('"', '\\"')
    user = exec_user(
        tmp_path / "plugin", f'echo x >> {tmp_path}/runs; N=$(wc -l < {tmp_path}/runs); echo "{quoted}"'
    )
    api = connect(write_kubeconfig(tmp_path / "kubeconfig", standin.url, user=user))
    standin.admit("token-2")
    api.get(NODES, {}, "list nodes")
    assert standin.requests[-1].headers["authorization"] == "Bearer token-2"


def test_a_refused_token_makes_the_kubeconfig_be_read_again(
    standin: Standin, tmp_path: Path, connect: Connect
) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    user: dict[str, object] = {"tokenFile": str(token)}
    api = connect(write_kubeconfig(tmp_path / "kubeconfig", standin.url, user=user))
    standin.admit("new")
    token.write_text("new")
    assert failure(api).status == 401
    assert b"NodeList" in api.get(NODES, {}, "list nodes")


def test_a_kubeconfig_that_became_unreadable_is_kept_as_it_was(
    standin: Standin, tmp_path: Path, connect: Connect
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    api = connect(standin.kubeconfig(kubeconfig, token="old"))
    kubeconfig.write_text("")
    standin.admit("new")
    assert failure(api).status == 401
    standin.admit("old")
    assert b"NodeList" in api.get(NODES, {}, "list nodes")


def test_errors_say_what_was_wanted_and_what_was_answered(api: Api, standin: Standin) -> None:
    standin.fail(403, match="GET /api/v1/nodes")
    error = failure(api)
    assert (error.status, error.retry_after) == (403, None)
    assert str(error).startswith("cannot list nodes: 403 Forbidden: ")
    standin.fail(429, retry_after=7)
    assert failure(api).retry_after == 7
    assert failure(api, "/nothing").status == 404


def test_errors_without_an_answer_say_why(api: Api, standin: Standin, connect: Connect) -> None:
    standin.truncate(1)
    assert str(failure(api)) == "cannot list nodes: the connection broke"
    standin.refuse()
    assert str(failure(api)) == "cannot list nodes: Connection refused"
    nowhere = connect("", "http://name.that.is.invalid:1")
    assert "Name or service not known" in str(failure(nowhere)) or "resolution" in str(failure(nowhere))


def test_a_patch_is_a_merge_patch(api: Api, standin: Standin, admin: Admin) -> None:
    admin.create_node("n1", {"key": "a", "endpoint": "b"})
    answer = api.patch(f"{NODES}/n1", {"metadata": {"annotations": {"kilo.squat.ai/key": None}}}, "patch")
    assert json.loads(answer)["metadata"]["annotations"] == {"kilo.squat.ai/endpoint": "b"}
    assert standin.requests[-1].headers["content-type"] == "application/merge-patch+json"


def test_lines_are_put_together_again_however_they_are_cut(api: Api, admin: Admin) -> None:
    admin.create_node("big", {"key": "k" * 500_000})
    stream = api.stream(NODES, {"watch": "1"}, "watch nodes", 5)
    for number in range(50):
        admin.annotate("big", endpoint=str(number))
    lines: list[bytes] = []
    for batch in stream.batches():
        lines += [line for line in batch if line]
        if len(lines) == 51:
            break
    stream.close()
    objects = [json.loads(line)["object"]["metadata"]["annotations"] for line in lines]
    assert [o.get("kilo.squat.ai/endpoint") for o in objects] == [None, *map(str, range(50))]


def test_a_stream_that_says_nothing_breaks_in_time(api: Api, standin: Standin) -> None:
    standin.silence()
    stream = api.stream(NODES, {"watch": "1"}, "watch nodes", 0.3)
    with pytest.raises(ApiError, match="timed out"):
        list(stream.batches())
    stream.close()


def test_a_stream_whose_head_does_not_come_breaks_as_any_answer(
    api: Api, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kilo.watcher.client.READ_TIMEOUT", 0.3)
    standin.pause()
    with pytest.raises(ApiError, match="timed out"):
        api.stream(NODES, {"watch": "1"}, "watch nodes", 600)


def test_a_stream_can_be_cut_from_another_thread(api: Api, standin: Standin) -> None:
    standin.silence()
    stream = api.stream(NODES, {"watch": "1"}, "watch nodes", 30)
    threading.Timer(0.2, stream.cut).start()
    started = time.monotonic()
    with pytest.raises(ApiError):
        list(stream.batches())
    assert time.monotonic() - started < 5
    stream.close()
