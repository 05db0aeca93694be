"""URLs of the API server and of proxies: checked before anything is asked of them, and never quoted with a
password. Pure; used by kilo.watcher.access and session.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from kilo.errors import ProtocolError


def parsed(text: str) -> Url:
    """Raises ProtocolError if ``text`` is no URL with a scheme and a host, or its port is none."""
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#]+([/?#]\S*)?", text, re.IGNORECASE):
        raise ProtocolError("it is not a URL")
    try:
        url = parse_url(text)
    except (LocationParseError, ValueError) as e:
        raise ProtocolError("it is not a URL") from e
    if not url.host or url.port == 0:
        raise ProtocolError("it is not a URL")
    return url


def shown(text: str) -> str:
    """For a person: without the user and password that it may hold."""
    return re.sub(r"^([^/]*//|)[^/]*@", r"\1***@", text)


def without_user(url: Url) -> str:
    """The URL again, without user and password."""
    return url._replace(auth=None).url


def basic(user: str, password: str) -> str:
    """The value of the header Authorization, or Proxy-Authorization."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def basic_of(url: Url) -> str:
    """The same of the user and password of a URL, "" if it has none."""
    if url.auth is None:
        return ""
    user, _, password = url.auth.partition(":")
    return basic(unquote(user), unquote(password))
