"""How tests ask an API server, and what they give it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kilo.watcher.client import Api, ApiError
from tests.apiserver.kubeconfig import write_kubeconfig

NODES = "/api/v1/nodes"
Connect = Callable[..., Api]


def failure(api: Api, path: str = NODES) -> ApiError:
    with pytest.raises(ApiError) as caught:
        api.get(path, {}, "list nodes")
    return caught.value


def inline(directory: Path, name: str) -> dict[str, object]:
    """A user section with a certificate and its key written out."""
    return {
        f"client-{part}-data": base64.b64encode((directory / f"{name}.{end}").read_bytes()).decode()
        for part, end in (("certificate", "crt"), ("key", "key"))
    }


JANE: dict[str, object] = {
    "token": "t",
    "as": "jane",
    "as-uid": "7",
    "as-groups": ["dev", "ops, night"],
    "as-user-extra": {"scopes": ["view", "edit"], "acme.example/x": ["50%"]},
}


def by_proxy(directory: Path, server: str, proxy: str, **cluster: object) -> str:
    """A kubeconfig whose cluster names a proxy."""
    path = directory / "kubeconfig"
    write_kubeconfig(path, server)
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"] |= {"proxy-url": proxy, **cluster}
    path.write_text(json.dumps(config))
    return str(path)
