"""Why a request got no answer, and what to do, from the errors of urllib3, whose own texts name objects.

Pure; used by kilo.watcher.client.
"""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass

import urllib3

from kilo.watcher.proxy import Proxy
from kilo.watcher.x509 import Certificate, shown_time

_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")
"""OpenSSL's reasons where the other side speaks something else than TLS."""
_NOT_YET, _EXPIRED, _NAMES, _ISSUERS = 9, 10, (62, 64), (2, 18, 19, 20, 21)
"""OpenSSL's codes of a certificate that is refused: for its dates, its names or its issuer."""
_MOST_NAMES = 8


@dataclass(frozen=True)
class RequestFailure:
    """``event``: what it counts as in kilo_errors_total, beside what the request counts as; ``mend``: what to
    do, "" if that is to be seen from the reason."""

    reason: str
    event: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Way:
    """How a server is reached and verified. ``name``: the one that its certificate must have; ``authority``:
    by what it is verified; ``client``: our certificate, for a person, "" for none."""

    server: str
    proxy: Proxy | None = None
    name: str = ""
    authority: str = ""
    client: str = ""


def failure_of(error: BaseException, way: Way) -> RequestFailure:
    """The shortest true account of an error."""
    if way.proxy is not None and isinstance(error, urllib3.exceptions.ProxyError):
        return _proxy_failure(error.original_error, way.proxy)
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
            mend = "write http:// in the server's URL, or give the port that speaks TLS"
            return RequestFailure(f"{way.server} was reached, and does not speak TLS", "tls", mend)
        if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or "") and way.client:
            said = (cause.reason or "").partition("ALERT_")[2].lower().replace("_", " ")
            mend = "give a client certificate that this cluster has issued and that has not expired"
            return RequestFailure(f"{way.server} was reached, and refuses {way.client}: {said}", "tls", mend)
    return RequestFailure(reason_of(error))


def refusal_of(proxy: Proxy, answer: str) -> RequestFailure:
    """The same for a proxy that answered with an error, such as ``502 Bad Gateway``."""
    mend = f"see that it lets this host reach the server, or take it out of {proxy.source}"
    if answer.startswith("407"):
        mend = "give its user and password in its URL"
    return RequestFailure(f"{proxy} answered {answer.strip()}", "proxy", mend)


def verification_of(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """Why the server's certificate was refused, None if it was not."""
    if isinstance(error, urllib3.exceptions.ProxyError):
        return None
    return next((c for c in _causes(error) if isinstance(c, ssl.SSLCertVerificationError)), None)


def certificate_failure(
    error: ssl.SSLCertVerificationError, way: Way, seen: Certificate | None, now: float
) -> RequestFailure:
    """``seen``: the certificate that the server presents, as far as it is known; ``now`` in Unix s."""
    why, mend = _certificate_reason(error, way, seen, now)
    return RequestFailure(f"{way.server} was reached, and its certificate is refused: {why}", "tls", mend)


def _certificate_reason(
    error: ssl.SSLCertVerificationError, way: Way, seen: Certificate | None, now: float
) -> tuple[str, str]:
    code = error.verify_code
    if code == _EXPIRED:
        mend = "renew the server's certificate, or set this host's clock right"
        if seen is not None and seen.ends <= now:
            return f"it expired at {shown_time(seen.ends)}", mend
        return "one of its chain has expired", mend
    if code == _NOT_YET:
        mend = "set this host's clock right"
        if seen is not None and seen.begins > now:
            return f"it is valid only from {shown_time(seen.begins)}", mend
        return "one of its chain is not valid yet", mend
    if code in _NAMES:
        names = ", ".join(seen.names[:_MOST_NAMES]) if seen is not None else ""
        more = " and more" if seen is not None and len(seen.names) > _MOST_NAMES else ""
        own = f"it is for {names}{more}, and not" if names else "it is not"
        return f"{own} for {way.name}", "give one of its names as the server, or as tls-server-name"
    if code in _ISSUERS:
        by = f"by {seen.issuer!r}" if seen is not None and seen.issuer else "by an authority"
        mend = "give the authority that signed it, or see that this is the cluster's server"
        return f"it is signed {by}, for which {way.authority} does not vouch", mend
    return error.verify_message, ""


def _proxy_failure(error: BaseException, proxy: Proxy) -> RequestFailure:
    answer = re.search(r"Tunnel connection failed: (\d+.*)", str(error))
    if answer:
        return refusal_of(proxy, answer[1])
    mend = f"see that it can be reached from this host, or take it out of {proxy.source}"
    reason = reason_of(error)
    if any(isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS for cause in _causes(error)):
        reason, mend = "it does not speak TLS", "write http:// in its URL, or give the port that speaks TLS"
    return RequestFailure(f"{proxy} cannot be used: {reason}", "proxy", mend)


def reason_of(error: BaseException) -> str:
    """The reason alone."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"certificate verify failed: {cause.verify_message}"
        if isinstance(cause, socket.gaierror) or (isinstance(cause, OSError) and cause.strerror):
            return str(cause.strerror)
        if isinstance(cause, TimeoutError):
            return "timed out"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "timed out"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection broke"
    return f"{type(error).__name__}: {error}"


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from, or made of."""
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        first = following.args[0] if following.args else None
        wrapped = first if isinstance(first, BaseException) else None
        following = following.__cause__ or following.__context__ or wrapped
    return found
