from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kilo.errors import PermanentError
from kilo.watcher import client
from kilo.watcher.client import Api, ApiError, Broken
from tests.apiserver import Admin, Standin
from tests.apiserver.kubeconfig import write_kubeconfig
from tests.clock import bound
from tests.unit.watcher.asking import NODES, Connect, failure, inline
from tests.unit.watcher.oddserver import HEAD, Answer, OddServer, chunk

ROOT = Path(__file__).parents[3]


@pytest.fixture
def api(standin: Standin, tmp_path: Path, connect: Connect) -> Api:
    return connect(standin.kubeconfig(tmp_path / "kubeconfig"))


@pytest.fixture
def admin(standin: Standin) -> Iterator[Admin]:
    with closing(standin.admin()) as admin:
        yield admin


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


def test_a_refused_token_makes_the_configuration_be_read_again(
    standin: Standin, tmp_path: Path, connect: Connect
) -> None:
    """A file system that hides a change from us is not asked twice."""
    kubeconfig = tmp_path / "kubeconfig"
    api = connect(standin.kubeconfig(kubeconfig, token="old"))
    standin.admit("new")
    state = kubeconfig.stat()
    standin.kubeconfig(kubeconfig, token="new")
    os.utime(kubeconfig, ns=(state.st_atime_ns, state.st_mtime_ns))
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


def test_credentials_that_do_not_come_are_a_failed_request(
    standin: Standin, tmp_path: Path, connect: Connect
) -> None:
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}
    api = connect(write_kubeconfig(tmp_path / "kubeconfig", standin.url, user={"exec": plugin}))
    error = failure(api)
    assert str(error) == "cannot list nodes: credentials: credential plugin /bin/false: exit status 1"
    assert (error.status, standin.requests) == (0, deque())


# Over TLS.


def test_client_certificates_are_taken_from_the_kubeconfig(
    certificates: Path, secure: OddServer, tmp_path: Path, connect: Connect
) -> None:
    ca, user = str(certificates / "server.crt"), inline(certificates, "client")
    api = connect(write_kubeconfig(tmp_path / "kubeconfig", secure.url, ca=ca, user=user))
    assert api.get("/x", {}, "ask") == b"{}"
    assert secure.subjects == ["client"]


def test_the_server_must_be_the_one_that_the_authority_vouches_for(
    certificates: Path, secure: OddServer, tmp_path: Path, connect: Connect
) -> None:
    user = inline(certificates, "client")
    kubeconfig = tmp_path / "kubeconfig"
    other = connect(write_kubeconfig(kubeconfig, secure.url, ca=str(certificates / "client.crt"), user=user))
    assert f"{secure.url} was reached, and its certificate is refused: it is signed by 'server'" in str(
        failure(other)
    )
    config = json.loads(kubeconfig.read_text())
    config["clusters"][0]["cluster"] |= {"certificate-authority": str(certificates / "server.crt")}
    config["clusters"][0]["cluster"] |= {"tls-server-name": "elsewhere"}
    kubeconfig.write_text(json.dumps(config))
    assert " and not for elsewhere" in str(failure(other))
    config["clusters"][0]["cluster"] |= {"tls-server-name": "kubernetes"}
    kubeconfig.write_text(json.dumps(config))
    assert other.get("/x", {}, "ask") == b"{}"
    config["clusters"][0]["cluster"] = {"server": secure.url, "insecure-skip-tls-verify": True}
    kubeconfig.write_text(json.dumps(config))
    assert other.get("/x", {}, "ask") == b"{}"
    assert not other.verified


def test_no_key_is_ever_in_a_file(certificates: Path, secure: OddServer, tmp_path: Path) -> None:
    ca, user = str(certificates / "server.crt"), inline(certificates, "client")
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", secure.url, ca=ca, user=user)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = f"""
        import os
        from kilo.watcher.client import Api
        print(Api({kubeconfig!r}, "").get("/x", {{}}, "ask"), flush=True)
        os.kill(os.getpid(), 9)
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert done.stdout == b"b'{}'\n", done.stderr
    assert os.listdir(temporary) == []


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


@pytest.mark.timing
def test_a_stream_can_be_cut_from_another_thread(api: Api, standin: Standin) -> None:
    standin.silence()
    stream = api.stream(NODES, {"watch": "1"}, "watch nodes", 30)
    threading.Timer(0.2, stream.cut).start()
    started = time.monotonic()
    with pytest.raises(ApiError):
        list(stream.batches())
    assert time.monotonic() - started < bound(5)
    stream.close()


# Without an end.


@pytest.fixture
def odd(connect: Connect) -> Iterator[Callable[[Answer], Api]]:
    with ExitStack() as stack:
        yield lambda answer: connect("", stack.enter_context(closing(OddServer(answer))).url)


def test_a_line_without_an_end_costs_no_more_memory_than_is_allowed(
    odd: Callable[[Answer], Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LINE_LIMIT", 1 << 20)
    sent = []

    def answer(request: str) -> Iterator[bytes]:
        yield HEAD
        yield chunk(b'{"type":"ADDED"}\n')
        for number in range(64):
            sent.append(number)
            yield chunk(b"x" * (1 << 18))

    stream = odd(answer).stream(NODES, {"watch": "1"}, "watch nodes", 5)
    lines: list[bytes] = []
    with pytest.raises(ApiError, match="cannot watch nodes: a line of it is longer than 1 MiB") as caught:
        for batch in stream.batches():
            lines += batch
    stream.close()
    assert lines == [b'{"type":"ADDED"}\n']
    assert not isinstance(caught.value, Broken), "it is no mere interruption"
    assert len(sent) < 40, "and the rest is not waited for"


def test_one_chunk_without_an_end_is_not_waited_for(
    odd: Callable[[Answer], Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LINE_LIMIT", 1 << 20)

    def answer(request: str) -> Iterator[bytes]:
        yield HEAD + b"fffffff\r\n"
        for _ in range(8):
            yield b"x" * (1 << 18)
        time.sleep(5)

    stream = odd(answer).stream(NODES, {"watch": "1"}, "watch nodes", 3)
    with pytest.raises(ApiError, match="longer than 1 MiB"):
        list(stream.batches())
    stream.close()


@pytest.mark.timing
def test_an_answer_without_an_end_is_not_waited_for(
    odd: Callable[[Answer], Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(request: str) -> Iterator[bytes]:
        yield HEAD
        for _ in range(100):
            time.sleep(0.05)
            yield chunk(b"x")

    def flood(request: str) -> Iterator[bytes]:
        yield HEAD
        while True:
            yield chunk(b"x" * (1 << 18))

    started = time.monotonic()
    with pytest.raises(ApiError, match="cannot patch: the answer did not end in time"):
        odd(drip).patch("/x", {}, "patch", 0.5)
    assert time.monotonic() - started < bound(3)
    monkeypatch.setattr(client, "GET_TIMEOUT", 0.5)
    with pytest.raises(ApiError, match="cannot list nodes: the answer did not end in time"):
        odd(drip).get(NODES, {}, "list nodes")
    monkeypatch.undo()
    monkeypatch.setattr(client, "ANSWER_LIMIT", 1 << 20)
    with pytest.raises(ApiError, match="cannot list nodes: the answer is too long"):
        odd(flood).get(NODES, {}, "list nodes")


@pytest.mark.parametrize("wait", ["soon", "\u00b2", "-1", "1.5", "9" * 400])
def test_a_server_may_say_nonsense_about_when_to_come_again(odd: Callable[[Answer], Api], wait: str) -> None:
    head = f"HTTP/1.1 503 Busy\r\nRetry-After: {wait}\r\nContent-Length: 5\r\n\r\noops\n"
    error = failure(odd(lambda request: iter([head.encode("latin-1")])))
    assert str(error) == "cannot list nodes: 503 Busy"
    assert error.retry_after in (None, float("inf"))
