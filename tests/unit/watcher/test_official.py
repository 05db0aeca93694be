from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kilo.errors import TemporaryError
from kilo.watcher.official import authorization_of
from tests.apiserver.kubeconfig import write_kubeconfig

ROOT = Path(__file__).parents[3]


def python(code: str) -> str:
    """What a new interpreter prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_what_is_needed_of_the_official_client_is_loaded() -> None:
    out = python("""
        import sys
        from kilo.watcher.client import Api
        api = Api("", "http://127.0.0.1:1")
        heavy = ("kubernetes", "pydantic", "requests", "requests_oauthlib", "oauthlib", "websocket")
        print(*sorted(m for m in sys.modules if m.split(".")[0] in heavy))
        import kubernetes
        print(kubernetes.client.V1Node.__name__)
    """)
    assert out.splitlines() == ["", "V1Node"], "and who wants the whole of it later can have it"


def test_where_the_lean_way_fails_the_whole_package_is_loaded() -> None:
    out = python("""
        from kilo.watcher import official
        def fail(root): raise ImportError
        official._load_lean = fail
        from kilo.watcher.client import Api
        print(Api("", "http://127.0.0.1:1").server)
    """)
    assert out == "http://127.0.0.1:1\n"


@pytest.mark.parametrize(
    "user",
    [
        {"token": "t"},
        {"auth-provider": {"name": "oidc"}},
        {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}},
    ],
)
def test_it_is_loaded_before_there_are_threads_whoever_we_are(
    tmp_path: Path, user: dict[str, object]
) -> None:
    """While it is loaded, others would import the wrong modules."""
    path = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1", user=user)
    out = python(f"""
        from kilo.watcher import official
        from kilo.watcher.client import Api
        api = Api({path!r}, "")
        print(official._loaded is not None)
    """)
    assert out == "True\n"


def token(expires: float) -> str:
    """An OpenID Connect token, as far as the client looks at it."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": int(expires), "pad": "x" * 8}).encode())
    return f"head.{claims.decode().rstrip('=')}.signature"


def test_an_auth_provider_gives_a_token() -> None:
    given = token(time.time() + 3600)
    assert authorization_of({"name": "oidc", "config": {"id-token": given}}) == f"Bearer {given}"


@pytest.mark.parametrize(
    "provider", [{"name": "oidc"}, {"name": "other"}, {}, {"name": "oidc", "config": {}}]
)
def test_an_auth_provider_that_gives_none_is_named(provider: dict[str, object]) -> None:
    with pytest.raises(TemporaryError, match="auth-provider"):
        authorization_of(provider)
