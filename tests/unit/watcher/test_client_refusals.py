"""Credentials that a server does not accept, and servers whose certificate is not accepted."""

from __future__ import annotations

import ssl
from contextlib import closing
from pathlib import Path

import pytest

from kilo.watcher import client
from kilo.watcher.session import Sessions
from kilo.watcher.x509 import decode_pem, shown_time
from tests.apiserver import Standin
from tests.apiserver.kubeconfig import write_kubeconfig
from tests.unit.watcher.asking import JANE, Connect, by_proxy, failure, inline
from tests.unit.watcher.certificates import issue, server_context
from tests.unit.watcher.oddserver import OddServer, Tunnel, whole
from tests.unit.watcher.test_identity import jwt

# What the server does not accept, and what is refused of the server.


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of one authority: a good one, one that has expired, one that is not valid yet."""
    directory = tmp_path_factory.mktemp("issued")
    issue(directory, "root", ca=True)
    issue(directory, "good", "root", names="IP:127.0.0.1,DNS:kubernetes")
    issue(directory, "elsewhere", "root", names="IP:192.0.2.1,DNS:kubernetes")
    issue(directory, "old", "root", days=-1)
    issue(directory, "stranger", ca=True)
    return directory


def presenting(directory: Path, name: str) -> OddServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / f"{name}.crt", directory / f"{name}.key")
    return OddServer(lambda request: iter([whole(b"{}")]), context)


@pytest.mark.parametrize(
    ("name", "ca", "why", "mend"),
    [
        (
            "good",
            "stranger",
            "it is signed by 'root', for which {dir}/stranger.crt does not vouch",
            "authority",
        ),
        (
            "elsewhere",
            "root",
            "it is for IP:192.0.2.1, DNS:kubernetes, and not for 127.0.0.1",
            "as the server",
        ),
        ("old", "root", "it expired at {ends}", "renew the server's certificate"),
    ],
)
def test_server_whose_certificate_is_refused_was_reached_and_the_reason_is_said(
    issued: Path, tmp_path: Path, connect: Connect, name: str, ca: str, why: str, mend: str
) -> None:
    ends = shown_time(decode_pem((issued / f"{name}.crt").read_bytes()).ends)
    said = why.format(dir=issued, ends=ends)
    with closing(presenting(issued, name)) as odd:
        api = connect(write_kubeconfig(tmp_path / "k", odd.url, "secret", ca=str(issued / f"{ca}.crt")))
        errors = [failure(api) for _ in range(2)]
        assert "".join(odd.requests) == "", "nothing is sent to it"
    expected = f"cannot list nodes: {odd.url} was reached, and its certificate is refused: {said}"
    assert [str(error) for error in errors] == [expected] * 2
    assert (errors[0].event, errors[0].status) == ("tls", 0)
    assert mend in errors[0].mend


def test_server_whose_certificate_is_refused_is_looked_at_once_a_minute(
    issued: Path, tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []
    monkeypatch.setattr(Sessions, "presented", lambda sessions: looks.append(None))
    with closing(presenting(issued, "good")) as odd:
        api = connect(write_kubeconfig(tmp_path / "k", odd.url, ca=str(issued / "stranger.crt")))
        assert {str(failure(api)).partition("refused: ")[2] for _ in range(5)} == {
            f"it is signed by an authority, for which {issued}/stranger.crt does not vouch"
        }
    assert len(looks) == 1


def test_server_behind_a_proxy_has_its_certificate_looked_at_through_it(
    issued: Path, tmp_path: Path, connect: Connect
) -> None:
    with closing(presenting(issued, "good")) as odd, closing(Tunnel()) as tunnel:
        cluster = {"certificate-authority": str(issued / "stranger.crt")}
        api = connect(by_proxy(tmp_path, odd.url, tunnel.url, **cluster))
        assert "it is signed by 'root', for which" in str(failure(api))
        there = odd.url.removeprefix("https://")
        assert [line.split()[:2] for line in tunnel.requests] == [["CONNECT", there]] * 2


def test_server_that_does_not_speak_tls_is_named(tmp_path: Path, connect: Connect) -> None:
    with closing(OddServer(lambda request: iter([whole(b"")]))) as odd:
        url = odd.url.replace("http:", "https:")
        error = failure(connect(write_kubeconfig(tmp_path / "k", url)))
    assert str(error) == f"cannot list nodes: {url} was reached, and does not speak TLS"
    assert "http://" in error.mend


def test_server_that_speaks_tls_alone_is_named(tmp_path: Path, connect: Connect) -> None:
    answer = whole(b"Client sent an HTTP request to an HTTPS server.\n", "400 Bad Request")
    with closing(OddServer(lambda request: iter([answer]))) as odd:
        error = failure(connect(write_kubeconfig(tmp_path / "k", odd.url)))
    assert error.account == (
        f"cannot list nodes: {odd.url} was reached, and speaks TLS: write https:// in the server's URL"
    )


def test_client_certificate_that_a_server_refuses_is_named(
    certificates: Path, tmp_path: Path, connect: Connect
) -> None:
    server = certificates / "server.crt", certificates / "server.key"
    context = server_context(server, certificates / "client.crt")
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # a later one tells the client after its first request
    with closing(OddServer(lambda request: iter([whole(b"{}")]), context)) as odd:
        ca, user = str(server[0]), inline(certificates, "server")
        path = write_kubeconfig(tmp_path / "k", odd.url, ca=ca, user=user)
        error = failure(connect(path))
    assert f"{odd.url} was reached, and refuses the client certificate of {path}: user 'u': " in str(error)
    assert error.event == "tls"


EXPIRED = jwt({"exp": 1_000_000})


@pytest.mark.parametrize(
    ("user", "said", "mend"),
    [
        (
            {"tokenFile": "token"},
            "the token in {dir}/token, which expired at 1970-01-12",
            "renew it",
        ),
        ({"token": EXPIRED}, "the token of {dir}/k: user 'u', which expired at 1970-01-12", "renew it"),
        ({"token": "opaque"}, "accept the token of {dir}/k: user 'u'", "that this cluster has issued"),
        ({"username": "a", "password": "b"}, "accept the password of {dir}/k: user 'u'", "still accepts"),
        ({}, "has no credentials, since {dir}/k: user 'u' has none", "give a token"),
    ],
)
def test_credentials_that_a_server_does_not_accept_are_named(
    standin: Standin, tmp_path: Path, connect: Connect, user: dict[str, object], said: str, mend: str
) -> None:
    (tmp_path / "token").write_text(EXPIRED)
    standin.admit("another")
    error = failure(connect(write_kubeconfig(tmp_path / "k", standin.url, user=user)))
    assert said.format(dir=tmp_path) in str(error)
    assert (error.status, error.event) == (401, "unauthorized")
    assert mend in error.mend
    assert EXPIRED not in error.account


def test_rights_that_are_missing_are_no_matter_of_the_token(
    standin: Standin, tmp_path: Path, connect: Connect
) -> None:
    api = connect(write_kubeconfig(tmp_path / "k", standin.url, EXPIRED))
    standin.fail(403)
    error = failure(api)
    assert "token" not in str(error)
    assert (error.event, error.mend) == ("forbidden", client.RIGHTS)


def test_rights_that_are_missing_are_those_of_the_user_that_is_acted_as(
    certificates: Path, tmp_path: Path, connect: Connect
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    with closing(OddServer(lambda request: iter([whole(b"", "403 Forbidden")]), context)) as odd:
        ca = str(certificates / "server.crt")
        error = failure(connect(write_kubeconfig(tmp_path / "k", odd.url, ca=ca, user=JANE)))
    assert error.mend == "see that the user may act as 'jane', and that 'jane' has the rights"
