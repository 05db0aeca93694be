from __future__ import annotations

import os
import ssl
import subprocess
from contextlib import suppress

import pytest

from kilo.errors import ProtocolError
from kilo.watcher.tls import Tls, context_of
from tests.unit.watcher.certificates import certify


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
        ("x", "", "", "the certificate authority cannot be used: no certificate or crl found"),
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
