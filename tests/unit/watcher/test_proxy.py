from __future__ import annotations

import pytest

from kilo.watcher.proxy import Proxy, of_environment

PROXY = "http://192.0.2.9:3128"


def used(server: str, rules: str = "") -> bool:
    return of_environment(server, {"HTTPS_PROXY": PROXY, "HTTP_PROXY": PROXY, "NO_PROXY": rules}) is not None


@pytest.mark.parametrize(
    "server",
    [
        "https://127.0.0.1:6443",
        "https://127.8.9.10",
        "https://[::1]:6443",
        "https://[::ffff:127.0.0.1]:6443",
        "https://localhost:6443",
        "https://LOCALHOST",
        "http://127.0.0.1:8001",
    ],
)
def test_proxy_is_never_used_for_this_host(server: str) -> None:
    assert not used(server)


@pytest.mark.parametrize(
    "server", ["https://192.0.2.1", "https://[2001:db8::1]:6443", "https://localhost.example.com", "http://a"]
)
def test_proxy_is_used_for_other_hosts(server: str) -> None:
    assert used(server)


@pytest.mark.parametrize(
    ("server", "rules", "expected"),
    [
        ("https://a.example.com", "*", False),
        ("https://a.example.com", "other, *", False),
        ("https://a.example.com", "example.com", False),
        ("https://example.com", "example.com", False),
        ("https://badexample.com", "example.com", True),
        ("https://a.example.com", ".example.com", False),
        ("https://example.com", ".example.com", True),
        ("https://a.example.com", "*.example.com", False),
        ("https://example.com", "*.example.com", True),
        ("https://A.Example.com", "EXAMPLE.COM", False),
        ("https://a.example.com:6443", "example.com:6443", False),
        ("https://a.example.com:6443", "example.com:443", True),
        ("https://a.example.com", "example.com:443", False),
        ("https://192.0.2.1", "192.0.2.1", False),
        ("https://192.0.2.1:6443", "192.0.2.1:6443", False),
        ("https://192.0.2.1:6443", "192.0.2.1:443", True),
        ("https://192.0.2.1", "192.0.2.0/24", False),
        ("https://192.0.3.1", "192.0.2.0/24", True),
        ("https://[2001:db8::1]", "2001:db8::/32", False),
        ("https://[2001:db8::1]", "2001:DB8:0::1", False),
        ("https://[2001:db8::1]:6443", "[2001:db8::1]:6443", False),
        ("https://[2001:db8::1]", "[2001:db8::1]:6443", True),
        ("https://192.0.2.1", "2.1", True),
        ("https://a.example.com", " , ,nonsense/33,[,:443", True),
        ("https://kubernetes.default.svc", ".svc,10.0.0.0/8", False),
    ],
)
def test_proxy_is_bypassed_by_the_rules_of_no_proxy(server: str, rules: str, expected: bool) -> None:
    assert used(server, rules) is expected


@pytest.mark.parametrize(
    ("server", "environment", "source"),
    [
        ("https://a", {"HTTPS_PROXY": PROXY, "https_proxy": "http://other"}, "HTTPS_PROXY"),
        ("https://a", {"HTTPS_PROXY": "", "https_proxy": PROXY}, "https_proxy"),
        ("http://a", {"http_proxy": PROXY}, "http_proxy"),
        ("http://a", {"HTTPS_PROXY": PROXY}, ""),
        ("https://a", {"HTTP_PROXY": PROXY, "ALL_PROXY": PROXY}, ""),
    ],
)
def test_proxy_is_the_one_of_the_server_s_scheme(
    server: str, environment: dict[str, str], source: str
) -> None:
    found = of_environment(server, environment)
    assert found == (Proxy(PROXY, source) if source else None)


def test_proxy_without_a_scheme_is_http() -> None:
    found = of_environment("https://a", {"HTTPS_PROXY": "me:secret@192.0.2.9:3128"})
    assert found is not None
    assert found.url == "http://me:secret@192.0.2.9:3128"
    assert str(found) == "the proxy http://***@192.0.2.9:3128 (HTTPS_PROXY)"
    assert "secret" not in repr(found)
