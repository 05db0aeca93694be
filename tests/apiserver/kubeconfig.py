"""Writes kubeconfigs."""

from __future__ import annotations

import json
from pathlib import Path


def write_kubeconfig(
    path: Path, server: str, token: str = "", ca: str = "", user: dict[str, object] | None = None
) -> str:
    """A kubeconfig for ``server`` (a URL) at ``path``; its path as text.

    ``ca``: file of the server's CA. ``user``: the user section, instead of one with ``token``.
    """
    cluster = {"server": server} | ({"certificate-authority": ca} if ca else {})
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user if user is not None else ({"token": token} if token else {})}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(config, indent=1))
    return str(path)
