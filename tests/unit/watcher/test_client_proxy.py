"""Requests through a proxy."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from kilo.errors import PermanentError
from kilo.watcher.client import Api
from tests.apiserver import Standin
from tests.unit.watcher.asking import NODES, Connect, by_proxy, failure
from tests.unit.watcher.oddserver import OddServer, whole

# Through a proxy.


def test_proxy_of_the_environment_is_not_used_for_this_host(
    standin: Standin, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(OddServer(lambda request: iter([whole(b"{}")]))) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert b"NodeList" in connect("", standin.url).get(NODES, {}, "list nodes")
        assert proxy.requests == []


def test_proxy_of_the_kubeconfig_counts_before_no_proxy(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with closing(OddServer(lambda request: iter([whole(b"{}")]))) as proxy:
        api = connect(by_proxy(tmp_path, "http://127.0.0.1:9", proxy.url))
        assert api.get(NODES, {}, "list nodes") == b"{}"
        assert proxy.requests[0].startswith("GET http://127.0.0.1:9/api/v1/nodes ")


@pytest.mark.parametrize("server", ["http://192.0.2.1:6443", "https://192.0.2.1:6443"])
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            "407 Proxy Authentication Required",
            "answered 407 Proxy Authentication Required: give its user and password in its URL",
        ),
        ("502 Bad Gateway", "answered 502 Bad Gateway: see that it lets this host reach the server"),
    ],
)
def test_proxy_that_refuses_is_named(
    tmp_path: Path, connect: Connect, server: str, status: str, said: str
) -> None:
    with closing(OddServer(lambda request: iter([whole(b"", status)]))) as proxy:
        url = proxy.url.replace("//", "//me:secret@")
        error = failure(connect(by_proxy(tmp_path, server, url))).account
    assert f"the proxy {proxy.url.replace('//', '//***@')} (" in error
    assert "kubeconfig: proxy-url of cluster 'c') " + said in error
    assert "secret" not in error


@pytest.mark.parametrize("server", ["http://192.0.2.1:6443", "https://192.0.2.1:6443"])
def test_proxy_that_is_not_there_is_named(tmp_path: Path, connect: Connect, server: str) -> None:
    with closing(OddServer(lambda request: iter([]))) as proxy:
        url = proxy.url
    error = str(failure(connect(by_proxy(tmp_path, server, url))))
    assert error.startswith(f"cannot list nodes: the proxy {url} (")
    assert error.endswith(" cannot be used: Connection refused")


def test_proxy_that_does_not_speak_tls_is_named(tmp_path: Path, connect: Connect) -> None:
    with closing(OddServer(lambda request: iter([whole(b"")]))) as proxy:
        url = proxy.url.replace("http:", "https:")
        error = failure(connect(by_proxy(tmp_path, "https://192.0.2.1", url))).account
    assert f"the proxy {url} (" in error
    assert " cannot be used: it does not speak TLS: write http:// in its URL" in error


def test_proxy_whose_certificate_is_refused_is_named(
    certificates: Path, verified: OddServer, tmp_path: Path, connect: Connect
) -> None:
    ca = str(certificates / "client.crt")
    kubeconfig = by_proxy(tmp_path, "https://192.0.2.1", verified.url, **{"certificate-authority": ca})
    error = str(failure(connect(kubeconfig)))
    assert f"the proxy {verified.url} (" in error
    assert " cannot be used: certificate verify failed: self-signed certificate" in error


@pytest.mark.parametrize("proxy", ["ftp://192.0.2.9:1", "192.0.2.9:1"])
def test_proxy_of_an_unknown_scheme_is_named(tmp_path: Path, proxy: str) -> None:
    with pytest.raises(
        PermanentError, match=r"the proxy .*192\.0\.2\.9:1 .* cannot be used: this is not the URL"
    ):
        Api(by_proxy(tmp_path, "https://192.0.2.1", proxy), "")
