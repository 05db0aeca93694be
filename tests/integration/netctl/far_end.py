"""A second WireGuard on the host of a test, which plays a peer."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.integration.netctl.hosts import ip


class FarEnd:
    """It is there once it was told to ``answer`` or to ``speak``, and ends with the host.

    ``name``: of its interface; one that begins as the host's does. ``directory``: for its key.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._key = directory / "far"
        private = subprocess.run(["wg", "genkey"], check=True, capture_output=True, text=True).stdout
        self._key.write_text(private)
        self.public_key = subprocess.run(
            ["wg", "pubkey"], check=True, capture_output=True, text=True, input=private
        ).stdout.strip()

    def answer(self, peer: str, port: int) -> None:
        """Answer ``peer`` on a port, and never begin."""
        subprocess.run(["wireguard-go", self._name], check=True, capture_output=True)
        self._set(f"listen-port {port} private-key {self._key} peer {peer} allowed-ips 10.4.0.1/32")
        ip(f"link set {self._name} up")

    def speak(self, peer: str, port: int) -> None:
        """Begin to speak to ``peer``, which is here, from a port."""
        self.answer(peer, port)
        self._set(f"peer {peer} endpoint 127.0.0.1:51820 persistent-keepalive 1")

    def move(self, port: int) -> None:
        """Speak from another port from now on."""
        self._set(f"listen-port {port}")

    def be_silent(self, peer: str) -> None:
        """Speak no more without being spoken to."""
        self._set(f"peer {peer} persistent-keepalive 0")

    def _set(self, settings: str) -> None:
        subprocess.run(["wg", "set", self._name, *settings.split()], check=True)
