from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.errors import ProtocolError
from kilo.watcher.x509 import decode_certificate, decode_pem, shown_time
from tests.unit.watcher.certificates import issue


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("x509")
    issue(directory, "root", ca=True, days=36500)
    issue(directory, "server", "root", names="DNS:a.example,DNS:*.b.example,IP:192.0.2.1,IP:2001:db8::1")
    return directory


def test_certificate_says_its_names_and_dates(directory: Path) -> None:
    found = decode_pem(b"# a comment\n" + (directory / "server.crt").read_bytes())
    assert (found.subject, found.issuer) == ("server", "root")
    assert found.names == ("DNS:a.example", "DNS:*.b.example", "IP:192.0.2.1", "IP:2001:db8::1")
    assert abs(found.begins - time.time()) < 3600
    assert found.ends - found.begins == 2 * 86400


def test_certificate_that_lives_beyond_2050_has_its_year(directory: Path) -> None:
    found = decode_pem((directory / "root.crt").read_bytes())
    assert found.ends - found.begins == 36500 * 86400
    assert found.names == ()


def test_time_is_shown_in_utc() -> None:
    assert shown_time(0) == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "pem", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_pem(pem)


def test_certificate_that_is_cut_off_is_refused(directory: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert((directory / "server.crt").read_text())
    for length in range(len(der)):
        with pytest.raises(ProtocolError):
            decode_certificate(der[:length])


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_are_refused(der: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_certificate(der)
