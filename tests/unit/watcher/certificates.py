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


def issue(
    directory: Path, name: str, issuer: str = "", ca: bool = False, days: int = 2, **also: str
) -> bytes:
    """The PEM of a certificate for ``name`` and its key, made by ``issuer`` (""; by itself).

    Its files are ``name``.crt and .key. ``names``: what it is for.
    """
    key, request, certificate = (directory / f"{name}.{end}" for end in ("key", "csr", "crt"))
    names = also.get("names", "IP:127.0.0.1,DNS:kubernetes")
    is_ca = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign"
    extensions = directory / f"{name}.ext"
    extensions.write_text(is_ca if ca else f"subjectAltName={names}")
    new = ["req", "-new", *EC[:-2], "-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}"]
    by = ["-CA", str(directory / f"{issuer}.crt"), "-CAkey", str(directory / f"{issuer}.key")]
    signer = [*by, "-CAcreateserial"] if issuer else ["-signkey", str(key)]
    sign = ["x509", "-req", "-in", str(request), "-days", str(days), "-extfile", str(extensions), *signer]
    for command in (new, [*sign, "-out", str(certificate)]):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return certificate.read_bytes()
