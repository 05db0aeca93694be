from __future__ import annotations

import os
import socket
import ssl
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import pytest

from kilo.errors import ProtocolError
from kilo.watcher.tls import Tls, context_of, seeing
from tests.unit.watcher.certificates import certify, issue
from tests.unit.watcher.oddserver import OddServer, whole


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """PEM by file name."""
    directory = tmp_path_factory.mktemp("tls")
    for name in ("ours", "other"):
        certify(directory, name)
    locked = ["openssl", "ec", "-in", "ours.key", "-out", "locked.key", "-aes256", "-passout", "pass:secret"]
    subprocess.run(locked, cwd=directory, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def open_files() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def test_a_context_trusts_the_authority_and_leaves_no_file_open(made: dict[str, bytes]) -> None:
    context = context_of(Tls(made["other.crt"], made["ours.crt"], made["ours.key"]))
    assert [str(ca["subject"]) for ca in context.get_ca_certs()] == ["((('commonName', 'other'),),)"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert not any("memfd" in path for path in open_files())


def test_an_authority_may_have_comments_in_any_script(made: dict[str, bytes]) -> None:
    assert context_of(Tls("# Größe\n".encode() + made["other.crt"])).get_ca_certs()


def test_what_is_not_to_be_verified_is_not(made: dict[str, bytes]) -> None:
    context = context_of(Tls(b"nonsense", verify=False))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize(
    ("ca", "certificate", "key", "reason"),
    [
        ("x", "", "", "the certificate authority cannot be used: it holds no certificate"),
        ("", "ours.crt", "other.key", "its key, cannot be used: key values mismatch"),
        ("", "ours.crt", "ours.crt", "its key, cannot be used: this is not PEM"),
        ("", "ours.crt", "", "its key, cannot be used: this is not PEM"),
        ("", "x", "ours.key", "its key, cannot be used: this is not PEM"),
        ("", "ours.crt", "locked.key", "its key, cannot be used: the key is encrypted"),
    ],
)
def test_what_cannot_be_used_is_named(
    made: dict[str, bytes], ca: str, certificate: str, key: str, reason: str
) -> None:
    ca_pem, certificate_pem, key_pem = (made.get(name, name.encode()) for name in (ca, certificate, key))
    with pytest.raises(ProtocolError, match=reason):
        context_of(Tls(ca_pem, certificate_pem, key_pem))
    assert "PRIVATE" not in repr(Tls(key=made["ours.key"]))


def test_context_that_only_sees_a_certificate_sends_nothing_by_other_ways() -> None:
    with pytest.raises(ssl.SSLError):
        seeing().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())


# Chains: root -> intermediate -> server, and a stranger.


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the certificates and keys."""
    directory = tmp_path_factory.mktemp("chain")
    issue(directory, "root", ca=True)
    issue(directory, "intermediate", "root", ca=True)
    issue(directory, "server", "intermediate")
    issue(directory, "stranger", ca=True)
    return directory


def pem(chain: Path, names: str) -> bytes:
    return b"".join((chain / f"{name}.crt").read_bytes() for name in names.split())


def refusal(chain: Path, sent: str, trusted: bytes) -> str:
    """Why a client that trusts ``trusted`` refuses a server that sends ``sent``, "" if it does not."""
    (chain / "sent.pem").write_bytes(pem(chain, sent))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain / "sent.pem", chain / "server.key")
    context = context_of(Tls(trusted))
    with closing(OddServer(lambda request: iter([whole(b"")]), server)) as odd:
        port = int(odd.url.rpartition(":")[2])
        try:
            with socket.create_connection(("127.0.0.1", port)) as plain:
                context.wrap_socket(plain, server_hostname="127.0.0.1").close()
        except ssl.SSLCertVerificationError as e:
            return e.verify_message
    return ""


@pytest.mark.parametrize("sent", ["server", "server intermediate", "server intermediate root"])
@pytest.mark.parametrize("trusted", ["intermediate", "server", "root intermediate", "stranger intermediate"])
def test_chain_is_trusted_from_whichever_certificate_the_authority_holds(
    chain: Path, sent: str, trusted: str
) -> None:
    assert refusal(chain, sent, pem(chain, trusted)) == ""


def test_chain_is_trusted_from_its_root_where_the_server_sends_the_rest(chain: Path) -> None:
    assert refusal(chain, "server intermediate", pem(chain, "root")) == ""
    assert "unable to get local issuer certificate" in refusal(chain, "server", pem(chain, "root"))


@pytest.mark.parametrize("sent", ["server", "server intermediate", "server intermediate root"])
def test_chain_of_another_authority_is_refused(chain: Path, sent: str) -> None:
    assert refusal(chain, sent, pem(chain, "stranger")) != ""


BROKEN = b"-----BEGIN CERTIFICATE-----\nMIIBnonsense\n-----END CERTIFICATE-----\n"
OTHER = b"-----BEGIN NOTES-----\nAAAA\n-----END NOTES-----\n"


@pytest.mark.parametrize("beside", [BROKEN, OTHER, b"\xff\xfe\n", b"\r\n"])
def test_authority_with_blocks_that_are_no_certificates_counts_by_the_others(
    chain: Path, beside: bytes
) -> None:
    root = pem(chain, "root")
    for bundle in (beside + root, root + beside, root.replace(b"\n", b"\r\n") + beside + root):
        assert refusal(chain, "server intermediate", bundle) == ""


def test_authority_is_as_old_as_go_takes_it(chain: Path) -> None:
    """Python 3.13 refuses by default what lacks extensions that older tools left out."""
    assert not context_of(Tls(pem(chain, "root"))).verify_flags & ssl.VERIFY_X509_STRICT
