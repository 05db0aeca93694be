"""Which proxy the way to the API server goes through: the kubeconfig's, else the environment's, else none.

The environment is read as every Go program reads it, so that both kinds of agent take the same way. Pure;
used by kilo.watcher.session.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from kilo.watcher.url import parsed, shown

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Proxy:
    """``source``: what names it, such as HTTPS_PROXY. ``url`` may hold a password."""

    url: str = field(repr=False)
    source: str

    def __str__(self) -> str:
        return f"the proxy {shown(self.url)} ({self.source})"


def of_environment(server: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY mean for a server, which is a URL."""
    url = parsed(server)
    names = ("HTTPS_PROXY", "https_proxy") if url.scheme == "https" else ("HTTP_PROXY", "http_proxy")
    source = next((name for name in names if environment.get(name)), "")
    if not source:
        return None
    host = (url.host or "").strip("[]").lower()
    port = url.port or PORTS[url.scheme or "http"]
    if bypassed(host, port, environment.get("NO_PROXY") or environment.get("no_proxy") or ""):
        return None
    proxy = environment[source]
    return Proxy(proxy if "://" in proxy else f"http://{proxy}", source)


def bypassed(host: str, port: int, rules: str) -> bool:
    """Whether connections to a name or an address, in lower case, use no proxy. ``rules``: NO_PROXY."""
    address = _address(host)
    # The host itself is never reached through a proxy.
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_matches(rule.strip().lower(), host, port, address) for rule in rules.split(","))


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _matches(rule: str, host: str, port: int, address: _Address | None) -> bool:
    """One rule: ``*``, a network, an address or a domain; the last two with a port, or without."""
    if rule == "*":
        return True
    if "/" in rule:
        return address is not None and _holds(rule, address)
    name, number = _split(rule)
    if not name or (number and number != str(port)):
        return False
    literal = _address(name)
    if literal is not None or address is not None:
        return literal == address
    # "example.com" and its subdomains; ".example.com" and "*.example.com" mean subdomains alone.
    name = name.removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _holds(network: str, address: _Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _split(rule: str) -> tuple[str, str]:
    """Host and port of ``host:port`` or ``[address]:port``; the port is "" where there is none."""
    if rule.startswith("["):
        inner, bracket, rest = rule[1:].partition("]")
        return (inner, rest.removeprefix(":")) if bracket else ("", "")
    if rule.count(":") == 1:
        name, _, number = rule.partition(":")
        return name, number
    return rule, ""
