"""Writes kubeconfigs."""

from __future__ import annotations

import base64
import json
from pathlib import Path


def write_kubeconfig(
    path: Path,
    server: str,
    token: str = "",
    ca: str = "",
    user: dict[str, object] | None = None,
    ca_data: bytes = b"",
) -> str:
    """A kubeconfig for ``server`` (a URL) at ``path``; its path as text.

    ``ca``: file of the server's CA, or ``ca_data``: what is in it. ``user``: the user section, instead of
    one with ``token``.
    """
    cluster = {"server": server}
    if ca:
        cluster["certificate-authority"] = ca
    if ca_data:
        cluster["certificate-authority-data"] = base64.b64encode(ca_data).decode()
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
