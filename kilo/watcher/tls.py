"""What TLS needs, from bytes in memory to a context, without a file that holds a key.

OpenSSL reads client certificates and keys from files. They are given to it as files that exist in memory
only, and only while they are read: nothing is left behind, whatever end the process comes to.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from urllib3.util.ssl_ import create_urllib3_context

from kilo.errors import ProtocolError

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")


@dataclass(frozen=True)
class Tls:
    """PEM throughout. ``ca``: whom to trust, empty for what the host trusts; ``certificate`` and
    ``key`` are ours, empty if we have none. ``name``: the server's, where it is not that of its URL."""

    ca: bytes = field(default=b"", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    verify: bool = True
    name: str = ""


def context_of(tls: Tls) -> ssl.SSLContext:
    """A context for clients. Raises ProtocolError, which names the part that OpenSSL does not take."""
    context: ssl.SSLContext = create_urllib3_context(
        cert_reqs=ssl.CERT_REQUIRED if tls.verify else ssl.CERT_NONE
    )
    # As in Go: any certificate of the authority ends a chain, also an intermediate one, and extensions that
    # older tools left out are not asked for.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if tls.verify and tls.ca:
        _trust(context, tls.ca)
    elif tls.verify:
        context.load_default_certs()
    if tls.certificate:
        with _named("the client certificate, or its key,"), _in_memory(tls.certificate) as certificate:
            if not tls.key:
                context.load_cert_chain(certificate, password=_no_password)
                return context
            with _in_memory(tls.key) as key:
                context.load_cert_chain(certificate, key, password=_no_password)
    return context


class UnverifiedContext(ssl.SSLContext):
    """A context that verifies nothing, and ends each connection once it has seen the server's certificate:
    nothing is ever sent over one. ``certificate``: in DER, empty before."""

    certificate = b""

    def wrap_socket(self, *given: Any, **named: Any) -> ssl.SSLSocket:
        with super().wrap_socket(*given, **named) as connection:
            self.certificate = connection.getpeercert(binary_form=True) or b""
        raise ssl.SSLError("seen")

    def wrap_bio(self, *given: Any, **named: Any) -> ssl.SSLObject:
        """TLS within the TLS of a proxy: not looked into, since it would not end after the handshake."""
        raise ssl.SSLError("not seen")


def seeing() -> UnverifiedContext:
    """A context to see a certificate with that others refuse."""
    context = UnverifiedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _trust(context: ssl.SSLContext, authority: bytes) -> None:
    """Trust every certificate of a PEM; pass over other blocks, as in Go. Raises ProtocolError."""
    found = False
    for block in _CERTIFICATE.findall(authority):
        with suppress(ssl.SSLError, ValueError):
            context.load_verify_locations(cadata=ssl.PEM_cert_to_DER_cert(block.decode()))
            found = True
    if not found:
        raise ProtocolError("the certificate authority cannot be used: it holds no certificate")


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """The path of a file that only this process can open, and only in here."""
    fd = os.memfd_create("kg", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as e:
        reason = e.reason.lower().replace("_", " ") if e.reason else "this is not PEM"
        raise ProtocolError(f"{what} cannot be used: {reason}") from e
    except ValueError as e:
        raise ProtocolError(f"{what} cannot be used: {e}") from e


def _no_password() -> str:
    """For a key that has one. Without this, OpenSSL would ask whoever sits at the terminal."""
    raise ValueError("the key is encrypted")
