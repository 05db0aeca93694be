"""Why a request got no answer, in one line, from the errors of urllib3, whose own texts name objects.

Pure; used by kilo.watcher.client.
"""

from __future__ import annotations

import re
import socket
import ssl

import urllib3

from kilo.watcher.proxy import Proxy

NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")
"""OpenSSL's reasons where the other side speaks something else than TLS."""


def reason_of(error: BaseException, proxy: Proxy | None = None) -> str:
    """The shortest true account. ``proxy``: the one in use, which is named where it is what failed."""
    if proxy is None or not isinstance(error, urllib3.exceptions.ProxyError):
        return _plain(error)
    answer = re.search(r"Tunnel connection failed: (\d+.*)", str(error.original_error))
    if answer:
        return refusal_of(proxy, answer[1])
    return f"{proxy} cannot be used: {_plain(error.original_error)}"


def refusal_of(proxy: Proxy, answer: str) -> str:
    """The same for a proxy that answered with an error, such as ``502 Bad Gateway``."""
    hint = ": give its user and password in its URL" if answer.startswith("407") else ""
    return f"{proxy} answered {answer.strip()}{hint}"


def _plain(error: BaseException) -> str:
    deepest: BaseException | None = error
    while deepest is not None:
        if isinstance(deepest, ssl.SSLCertVerificationError):
            return f"certificate verify failed: {deepest.verify_message}"
        if isinstance(deepest, ssl.SSLError) and deepest.reason in NOT_TLS:
            return "it does not speak TLS: is its URL http://?"
        if isinstance(deepest, socket.gaierror) or (isinstance(deepest, OSError) and deepest.strerror):
            return str(deepest.strerror)
        if isinstance(deepest, TimeoutError):
            return "timed out"
        deepest = deepest.__cause__ or deepest.__context__ or _wrapped(deepest)
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "timed out"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection broke"
    return f"{type(error).__name__}: {error}"


def _wrapped(error: BaseException) -> BaseException | None:
    """The error that one of urllib3's was made of, where it was not raised from it."""
    first = error.args[0] if error.args else None
    return first if isinstance(first, BaseException) else None
