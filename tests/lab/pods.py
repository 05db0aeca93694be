"""Pods: network namespaces of a host, attached by the real CNI plugins through the host's conflist."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.cni_runtime import Attachment, addresses, attach, detach
from tests.lab.dataplane import CONFLIST
from tests.lab.host import Host
from tests.lab.namespaces import ALL, call_entered
from tests.lab.ping import open_socket

T = TypeVar("T")


class Pod:
    """A pod on ``host``. It has an ``address`` once attached."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        host.run("ip", "netns", "add", name)
        host.run("ip", "-n", name, "link", "set", "lo", "up")
        attachment = Attachment(Path(CONFLIST), name, name)
        result = host.call(lambda: attach(attachment), ALL)
        self._attachment = attachment
        self.address = addresses(result)[0].partition("/")[0]

    def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` in a thread of this process in the pod's network."""
        return call_entered([str(self.host.path(f"/run/netns/{self.name}"))], function)

    def open_ping_socket(self) -> socket.socket:
        return self.call(open_socket)

    def remove(self) -> None:
        """Detach and remove the pod, as a kubelet does."""
        self.host.call(lambda: detach(self._attachment), ALL)
        self.host.run("ip", "netns", "del", self.name)


def conflist_template() -> str:
    """What the Go project's manifests put at the conflist's path; the agent adds the pod CIDR."""
    return json.dumps(
        {
            "cniVersion": "0.4.0",
            "name": "kilo",
            "plugins": [
                {
                    "name": "kubernetes",
                    "type": "bridge",
                    "bridge": "kube-bridge",
                    "isDefaultGateway": True,
                    "forceAddress": True,
                    "mtu": 1420,
                    "ipam": {"type": "host-local"},
                },
                {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
            ],
        },
        indent=2,
    )
