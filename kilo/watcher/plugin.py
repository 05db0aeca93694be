"""Credential plugins: programs named in a kubeconfig that print who we are (ExecCredential).

The official client runs them without a time limit. Here one has 15 s, and is killed with everything
that it has started. What it prints on standard output is a secret and is never shown; the last line
of its standard error is, without what may be a secret (kilo.watcher.redacted). Any thread may run one,
one at a time.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import msgspec

from kilo.errors import ProtocolError, TemporaryError
from kilo.watcher.kubeconfig import Exec, Kubeconfig
from kilo.watcher.redacted import redacted

TIMEOUT = 15.0
OUTPUT_LIMIT = 1 << 20
"""Bytes on standard output; no credential is that long."""
COMPLAINT_LIMIT = 4096
"""Bytes kept of standard error, the last ones."""
CLUSTER_EXTENSION = "client.authentication.k8s.io/exec"


@dataclass(frozen=True)
class Credential:
    """What a plugin gave: a token, or a certificate with its key in PEM, or both.

    ``expires`` in Unix s, None if it did not say.
    """

    token: str = field(default="", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    expires: float | None = None


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None
    expiration_timestamp: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class _ExecCredential(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    status: _Status | None = None


class PluginRunner:
    """Runs plugins. ``stop``, from any thread, ends the one that runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, plugin: Exec, kubeconfig: Kubeconfig, ca: bytes) -> Credential:
        """What the plugin of a user of ``kubeconfig`` gives. ``ca``: the PEM of the cluster's authority.

        Raises TemporaryError, which names the plugin.
        """
        what = f"credential plugin {plugin.command}"
        try:
            return decode_credential(self._output(plugin, kubeconfig, ca), plugin.api_version)
        except ProtocolError as e:
            raise TemporaryError(f"{what}: what it printed is no credential: {e}") from e
        except FileNotFoundError as e:
            hint = redacted(plugin.install_hint)
            raise TemporaryError(f"{what} is not there{'; ' if hint else ''}{hint}") from e
        except OSError as e:
            raise TemporaryError(f"{what} cannot be run: {e.strerror}") from e
        except _Failed as e:
            raise TemporaryError(f"{what}: {e}") from e

    def stop(self) -> None:
        """Kill the plugin that runs, and start none from now on."""
        with self._lock:
            self._stopped = True
            self._kill()

    def _output(self, plugin: Exec, kubeconfig: Kubeconfig, ca: bytes) -> bytes:
        """Raises OSError, _Failed."""
        command = kubeconfig.beside(plugin.command) if os.sep in plugin.command else plugin.command
        given = {variable.name: variable.value for variable in plugin.env}
        given["KUBERNETES_EXEC_INFO"] = json.dumps(exec_info(plugin, kubeconfig, ca))
        with self._lock:
            if self._stopped:
                raise _Failed("not run, since this agent is ending")
            process = self._process = subprocess.Popen(
                [command, *plugin.args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **given},
                start_new_session=True,
            )
        with process:  # closes the pipes, and waits for what is dead by then
            try:
                output, complaint = _collect(process)
            except BaseException:
                with self._lock:
                    self._kill()
                raise
            finally:
                with self._lock:
                    self._process = None
        if status := process.returncode:
            how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
            raise _Failed(f"{how}{': ' if complaint else ''}{complaint}")
        return output

    def _kill(self) -> None:
        """The plugin and its children. It has not been waited for, so its number is still its own."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


class _Failed(Exception):
    """A plugin did something else than it should."""


def exec_info(plugin: Exec, kubeconfig: Kubeconfig, ca: bytes) -> dict[str, Any]:
    """What a plugin is told, in the variable KUBERNETES_EXEC_INFO."""
    spec: dict[str, Any] = {"interactive": False}
    if plugin.provide_cluster_info:
        cluster = kubeconfig.cluster
        configs = [e.extension for e in cluster.extensions if e.name == CLUSTER_EXTENSION]
        said = {
            "tls-server-name": cluster.tls_server_name,
            "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
            "certificate-authority-data": base64.b64encode(ca).decode(),
            "proxy-url": cluster.proxy_url,
            "disable-compression": cluster.disable_compression,
            "config": configs[0] if configs else None,
        }
        spec["cluster"] = {"server": cluster.server, **{k: v for k, v in said.items() if v}}
    return {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}


def decode_credential(output: bytes, version: str) -> Credential:
    """A plugin's answer. Raises ProtocolError, which never quotes it."""
    try:
        answer = msgspec.json.decode(output, type=_ExecCredential)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolError(str(e)) from e
    if answer.kind != "ExecCredential" or answer.api_version != version:
        raise ProtocolError(f"it is not an ExecCredential of {version}")
    status = answer.status or _Status()
    token = (status.token or "").strip()
    certificate, key = status.client_certificate_data or "", status.client_key_data or ""
    if bool(certificate) != bool(key):
        raise ProtocolError("clientCertificateData and clientKeyData go together")
    if not token and not certificate:
        raise ProtocolError("it has neither a token nor a client certificate")
    expires = status.expiration_timestamp
    return Credential(token, certificate.encode(), key.encode(), expires.timestamp() if expires else None)


def _collect(process: subprocess.Popen[bytes]) -> tuple[bytes, str]:
    """Standard output, and the last line of standard error, once the process has ended.

    A child that keeps its pipes open is not waited for. Raises _Failed.
    """
    output, complaint = bytearray(), bytearray()
    end = time.monotonic() + TIMEOUT
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for pipe, into in zip((process.stdout, process.stderr), (output, complaint), strict=True):
                if pipe is not None:
                    os.set_blocking(pipe.fileno(), False)
                    selector.register(pipe, selectors.EVENT_READ, into)
            over = False
            while not over:
                left = end - time.monotonic()
                ready = [key for key, _ in selector.select(left)] if left > 0 else []
                if not ready:
                    said = _last_line(complaint)
                    hint = f"; it said: {said}" if said else ""
                    raise _Failed(f"no answer within {TIMEOUT:g} s; it was killed{hint}")
                over = any(key.fd == ended for key in ready)
                for key in list(selector.get_map().values()) if over else ready:
                    if key.fd != ended and not _read(key.fd, key.data):
                        selector.unregister(key.fileobj)
                if len(output) > OUTPUT_LIMIT:
                    raise _Failed("too much on standard output; it was killed")
                del complaint[:-COMPLAINT_LIMIT]
    finally:
        os.close(ended)
    return bytes(output), _last_line(complaint)


def _last_line(complaint: bytearray) -> str:
    """For a person, in one line, and without what may be a key."""
    lines = [line for line in complaint.decode(errors="replace").splitlines() if line.strip()]
    return redacted(lines[-1]) if lines else ""


def _read(fd: int, into: bytearray) -> bool:
    """Read all that a pipe holds, up to what is too much in any case. Whether more may come."""
    start = len(into)
    with contextlib.suppress(BlockingIOError):
        while len(into) - start <= OUTPUT_LIMIT:
            data = os.read(fd, 1 << 16)
            if not data:
                return False
            into += data
    return True
