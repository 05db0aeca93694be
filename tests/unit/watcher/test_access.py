from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kilo.errors import PermanentError
from kilo.watcher.access import Access, read_access

SERVER = "https://192.0.2.1:6443"
SECRET = "c2VjcmV0IGtleQ"


def access(directory: Path, cluster: dict[str, Any] | None = None, master: str = "", **user: Any) -> Access:
    config = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": SERVER, **(cluster or {})}}],
        "users": [{"name": "u", "user": {k.replace("_", "-"): v for k, v in user.items()}}],
    }
    path = directory / "kubeconfig"
    path.write_text(json.dumps(config))
    return read_access(str(path), master)


def test_data_counts_before_files_and_files_are_beside_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"key")
    found = access(
        tmp_path,
        {"certificate-authority": "nowhere", "certificate-authority-data": base64.b64encode(b"ca").decode()},
        client_certificate_data=base64.b64encode(b"certificate").decode(),
        client_key="key",
    )
    assert (found.tls.ca, found.tls.certificate, found.tls.key) == (b"ca", b"certificate", b"key")
    assert set(found.files) == {str(tmp_path / "kubeconfig"), str(tmp_path / "key")}
    assert "b'key'" not in repr(found)


@pytest.mark.parametrize(
    ("user", "authorization"),
    [
        ({"token": SECRET}, f"Bearer {SECRET}"),
        ({"token": SECRET, "tokenFile": "token"}, "Bearer from-the-file"),
        ({"token": SECRET, "tokenFile": "nowhere"}, f"Bearer {SECRET}"),
        ({"username": "a", "password": "b"}, "Basic YTpi"),
        ({}, ""),
    ],
)
def test_who_we_are(tmp_path: Path, user: dict[str, Any], authorization: str) -> None:
    (tmp_path / "token").write_text("from-the-file\n")
    found = access(tmp_path, **user)
    assert found.authorization == authorization
    assert SECRET not in repr(found)


def test_token_file_that_comes_later_is_watched(tmp_path: Path) -> None:
    assert access(tmp_path, token=SECRET, tokenFile="later").files[str(tmp_path / "later")] is None


def test_data_in_lines_is_base64_and_what_is_none_is_refused(tmp_path: Path) -> None:
    data = base64.b64encode(b"x" * 90).decode()
    lines = f"{data[:64]}\n{data[64:]}\n"
    assert access(tmp_path, {"certificate-authority-data": lines}).tls.ca == b"x" * 90
    with pytest.raises(PermanentError, match="certificate-authority-data is not base64"):
        access(tmp_path, {"certificate-authority-data": "/etc/ca.crt#"})


def test_server_without_a_scheme_is_https_where_there_is_what_tls_needs(tmp_path: Path) -> None:
    bare = {"server": "192.0.2.1:6443", "insecure-skip-tls-verify": True}
    assert access(tmp_path, bare).server == SERVER
    with pytest.raises(PermanentError, match="is not a URL"):
        access(tmp_path, {"server": "192.0.2.1:6443"})


def test_what_must_be_asked_is_not_asked_here(tmp_path: Path) -> None:
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}
    asked = access(tmp_path, exec=plugin)
    assert asked.plugin is not None
    assert asked.authorization == ""
    assert access(tmp_path, exec=plugin, token="t").plugin is None, "a token is enough"
    assert access(tmp_path, auth_provider={"name": "oidc"}).provider == {"name": "oidc"}


def test_how_the_server_is_reached(tmp_path: Path) -> None:
    cluster = {
        "insecure-skip-tls-verify": True,
        "tls-server-name": "kubernetes",
        "proxy-url": "http://192.0.2.9:1",
    }
    found = access(tmp_path, cluster)
    assert (found.server, found.proxy, found.tls.name, found.tls.verify) == (
        SERVER,
        "http://192.0.2.9:1",
        "kubernetes",
        False,
    )
    assert access(tmp_path, {"server": ""}, master="http://192.0.2.7/").server == "http://192.0.2.7"
    assert read_access("", "http://192.0.2.7").authorization == ""


BAD_SERVERS = [
    "192.0.2.1:6443",
    "https://",
    "https://[2001:db8::1",
    "https://[2001:db8::1]:port",
    "https://192.0.2.1:99999",
    "https://:6443",
    "https://192.0.2.1:-1",
    "ftp://192.0.2.1",
    "https://a b",
]


@pytest.mark.parametrize("server", BAD_SERVERS)
def test_a_server_that_is_no_url_is_blamed_on_where_it_is_said(tmp_path: Path, server: str) -> None:
    reason = re.escape(f": the server {server!r} is not a URL, http:// or https://")
    with pytest.raises(PermanentError, match=f"^{tmp_path}/kubeconfig{reason}"):
        access(tmp_path, {"server": server})
    with pytest.raises(PermanentError, match=f"^--master{reason}"):
        access(tmp_path, master=server)
    with pytest.raises(PermanentError, match=f"^--master{reason}"):
        read_access("", server)


def test_a_password_in_a_url_is_neither_used_nor_shown(tmp_path: Path) -> None:
    found = access(tmp_path, {"server": f"https://me:{SECRET}@192.0.2.1/x"})
    assert (found.server, found.authorization) == ("https://192.0.2.1/x", "")
    with pytest.raises(PermanentError, match=r"the server 'https://\*\*\*@192\.0\.2\.1:x' is not a URL"):
        access(tmp_path, {"server": f"https://me:{SECRET}@192.0.2.1:x"})
    assert SECRET not in repr(access(tmp_path, {"proxy-url": f"http://me:{SECRET}@192.0.2.9"}))


def test_a_password_may_hold_any_characters(tmp_path: Path) -> None:
    encoded = base64.b64encode("a:\u20ac".encode()).decode()
    assert access(tmp_path, username="a", password="\u20ac").authorization == f"Basic {encoded}"


@pytest.mark.parametrize(
    ("cluster", "user", "reason"),
    [
        ({"server": "192.0.2.1:6443"}, {}, "the server '192.0.2.1:6443' is not a URL, http:// or https://"),
        ({"certificate-authority": "ca.crt"}, {}, "cannot read {dir}/ca.crt: No such file or directory"),
        (
            {"certificate-authority-data": "x"},
            {},
            "{dir}/kubeconfig: certificate-authority-data is not base64",
        ),
        ({}, {"client_key_data": SECRET[:5]}, "{dir}/kubeconfig: client-key-data is not base64"),
        ({}, {"tokenFile": "token"}, "cannot read {dir}/token: No such file or directory"),
        ({}, {"tokenFile": "empty"}, "{dir}/empty: it is empty"),
        (
            {},
            {"token": f"{SECRET}\nX-Header: 1"},
            "{dir}/kubeconfig: the token: it holds characters that no token",
        ),
        (
            {},
            {"token": f"{SECRET}\u00e9"},
            "{dir}/kubeconfig: the token: it holds characters that no token has",
        ),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], reason: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(PermanentError) as caught:
        access(tmp_path, cluster, **user)
    assert reason.replace("{dir}", str(tmp_path)) in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"--kubeconfig: .*/nothing does not exist"):
        read_access(str(tmp_path / "nothing"), "")
    with pytest.raises(PermanentError, match=f"cannot read {tmp_path}: Is a directory"):
        read_access(str(tmp_path), "")


def test_outside_a_cluster_and_without_flags_it_says_which_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(PermanentError, match="--kubeconfig or --master"):
        read_access("", "")
