"""Certificates for tests, made by openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]


def certify(directory: Path, name: str) -> tuple[Path, Path]:
    """The files of a certificate for ``name`` and 127.0.0.1, which is its own authority, and of its key."""
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:kubernetes"]
    subprocess.run(["openssl", "req", "-x509", *EC, *files, *subject], check=True, capture_output=True)
    return certificate, key


def server_context(server: tuple[Path, Path], client: Path) -> ssl.SSLContext:
    """For a server that admits whoever ``client`` vouches for, and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*server)
    context.load_verify_locations(client)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
