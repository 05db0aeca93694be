"""A small client of the API for tests, the demo and the benchmark: puts nodes and peers in and changes them.

Only the standard library, so that what simulates a cluster costs little. Works with the stand-in
and with a real server. One Admin is one connection: not for several threads at once.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.apiserver.store import CRD, CRDS, NODES, PEERS, Kind

PREFIX = "kilo.squat.ai/"


class AdminError(Exception):
    """The server's answer is an error; ``status`` as in HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Admin:
    """``server``: a URL. ``token`` and ``ca`` (a file) or ``ca_data`` (what is in it) for a real server."""

    def __init__(self, server: str, token: str = "", ca: str = "", ca_data: str = "") -> None:
        url = urlsplit(server)
        assert url.hostname is not None
        self._headers = {"Accept": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )
        self._connection: http.client.HTTPConnection
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=ca or None, cadata=ca_data or None)
            self._connection = http.client.HTTPSConnection(
                url.hostname, url.port, timeout=90, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=90)

    @classmethod
    def of(cls, kubeconfig: Path) -> Admin:
        """For the server and the token of a kubeconfig that write_kubeconfig wrote."""
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        ca_data = base64.b64decode(cluster.get("certificate-authority-data", "")).decode()
        return cls(
            cluster["server"], user.get("token", ""), cluster.get("certificate-authority", ""), ca_data
        )

    def close(self) -> None:
        self._connection.close()

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> Any:
        """The decoded answer. ``body``: bytes, or a value for JSON. Raises AdminError.

        A connection that the server closed is made again once.
        """
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = self._headers | ({"Content-Type": content_type} if data is not None else {})
        for again in (True, False):
            try:
                self._connection.request(method, path, data, headers)
                response = self._connection.getresponse()
                break
            except (
                http.client.RemoteDisconnected,
                ConnectionResetError,
                BrokenPipeError,
                ssl.SSLEOFError,
            ):
                self._connection.close()
                if not again:
                    raise
        text = response.read()
        if response.status >= 300:
            raise AdminError(response.status, text.decode(errors="replace"))
        if "json" not in response.headers.get("Content-Type", ""):
            return text.decode()
        return json.loads(text)

    # Nodes.

    def create_node(
        self,
        name: str,
        annotations: Mapping[str, str] | None = None,
        pod_cidr: str = "",
        labels: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Any:
        """``annotations`` whose names have no ``/`` get Kilo's prefix; ``more`` goes to the top level."""
        metadata: dict[str, Any] = {"name": name, "labels": dict(labels or {})}
        if annotations:
            metadata["annotations"] = prefixed(annotations)
        spec = {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]} if pod_cidr else {}
        return self.create(NODES, {"metadata": metadata, "spec": spec, **more})

    def annotate(self, name: str, **annotations: str | None) -> Any:
        """Set Kilo's annotations of a node, given with ``_`` for ``-``; None removes one."""
        values = prefixed({key.replace("_", "-"): value for key, value in annotations.items()})
        return self.patch(NODES, name, {"metadata": {"annotations": values}})

    def check_in(self, name: str, at: float | None = None) -> Any:
        """What an agent does every 30 s."""
        return self.annotate(name, last_seen=str(int(time.time() if at is None else at)))

    def annotations(self, name: str) -> dict[str, str]:
        """Kilo's annotations of a node, without the prefix."""
        found = self.get(NODES, name)["metadata"].get("annotations") or {}
        return {k.removeprefix(PREFIX): v for k, v in found.items() if k.startswith(PREFIX)}

    def delete_node(self, name: str) -> None:
        self.delete(NODES, name)

    # Peers.

    def create_peer(self, name: str, **spec: Any) -> Any:
        """``spec`` as in the resource: publicKey, allowedIPs, endpoint, ..."""
        return self.create(PEERS, {"metadata": {"name": name}, "spec": spec})

    def delete_peer(self, name: str) -> None:
        self.delete(PEERS, name)

    def create_crd(self, file: Path | None = None, timeout: float = 10.0) -> None:
        """Define peers, unless they are, and wait until they are served.

        ``file``: the definition, in YAML; the stand-in needs none.
        """
        try:
            if file is None:
                self.create(CRDS, {"metadata": {"name": CRD}})
            else:
                self.request("POST", CRDS.path, file.read_bytes(), "application/yaml")
        except AdminError as e:
            if e.status != 409:
                raise
        end = time.monotonic() + timeout
        while True:
            try:
                self.request("GET", PEERS.path)
                return
            except AdminError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def delete_crd(self) -> None:
        self.delete(CRDS, CRD)

    # Anything.

    def get(self, kind: Kind, name: str) -> Any:
        return self.request("GET", f"{kind.path}/{name}")

    def list(self, kind: Kind) -> Any:
        return self.request("GET", kind.path)["items"]

    def create(self, kind: Kind, value: Mapping[str, Any]) -> Any:
        return self.request("POST", kind.path, {"apiVersion": kind.api_version, "kind": kind.name, **value})

    def patch(self, kind: Kind, name: str, patch: Any) -> Any:
        return self.request("PATCH", f"{kind.path}/{name}", patch, "application/merge-patch+json")

    def delete(self, kind: Kind, name: str) -> None:
        self.request("DELETE", f"{kind.path}/{name}")


def prefixed(annotations: Mapping[str, Any]) -> dict[str, Any]:
    """``annotations`` with Kilo's prefix where a name has none."""
    return {(key if "/" in key else PREFIX + key): value for key, value in annotations.items()}
