"""Runs the pods of a manifest on a host of the lab, as a kubelet and a container runtime would.

What is read of a manifest: commands, environment, security contexts, volumes and mounts, probes. An
image is the machine itself, read-only (see tests.lab.container). Seccomp profiles and resources are not
applied.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.agents import REPOSITORY
from tests.lab.container import identity
from tests.lab.host import Host
from tests.lab.processes import tree

Document = dict[str, Any]
INIT = Path(__file__).with_name("container.py")
VOLUMES = "/run/kubelet"
PATH = ":".join(
    [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
)
IMAGE = (sys.prefix, sys.base_prefix, str(REPOSITORY))
GRACE = 25.0


@dataclass(frozen=True)
class Cluster:
    """What a kubelet is told by the API server: ConfigMaps by name, and the pod's token and its CA."""

    config_maps: Mapping[str, Mapping[str, str]]
    token: str = "none"
    ca: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Such as ``spec.nodeName``."""


class Pod:
    """A pod of ``daemonset`` on ``host``. Its containers are ended with the host, or by ``stop``."""

    def __init__(self, host: Host, daemonset: Document, cluster: Cluster) -> None:
        self.host = host
        self.name = daemonset["metadata"]["name"]
        self.spec: Document = daemonset["spec"]["template"]["spec"]
        self.containers: dict[str, Container] = {}
        self._cluster = cluster
        self._sources: dict[str, str] = {}

    def start(self) -> None:
        """Make the volumes, run the init containers one after the other, and start the others."""
        for volume in self.spec.get("volumes", []):
            self._sources[volume["name"]] = self._volume(volume)
        for each in self.spec.get("initContainers", []):
            first = Container(self, each)
            first.start()
            status = first.wait(60)
            if status:
                raise RuntimeError(
                    f"{self.host.name}: {first.name} ended with status {status}: {first.log()}"
                )
        for each in self.spec["containers"]:
            self.start_container(each["name"])

    def start_container(self, name: str, **changed: Any) -> Container:
        """Start one container, with these of its ``settings`` changed."""
        (spec,) = [each for each in self.spec["containers"] if each["name"] == name]
        container = Container(self, spec)
        container.settings |= changed
        container.start()
        self.containers[name] = container
        return container

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM to all containers at once, SIGKILL to what is left after the grace period."""
        for container in self.containers.values():
            container.signal(number)
        end = time.monotonic() + GRACE
        for container in self.containers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                container.wait(max(0.1, end - time.monotonic()))
                continue
            container.signal(signal.SIGKILL)
            container.wait(5)
            raise TimeoutError(f"{container.name} of {self.host.name} did not end in {GRACE:g} s")
        self.containers.clear()

    def empty(self, volume: str) -> None:
        """Remove all files from a volume."""
        for path in self.host.path(self._sources[volume]).iterdir():
            path.unlink()

    @property
    def group(self) -> int | None:
        """The group that the pod's volumes are given to."""
        group: int | None = self.spec.get("securityContext", {}).get("fsGroup")
        return group

    def mounts(self, container: Document) -> list[dict[str, Any]]:
        """A container's mounts, for tests.lab.container."""
        return [
            {
                "source": self._sources[m["name"]],
                "path": m["mountPath"],
                "read_only": m.get("readOnly", False),
            }
            for m in container.get("volumeMounts", [])
        ]

    def environment(self, container: Document) -> dict[str, str]:
        """The environment of a container: the image's, of ConfigMaps, its own."""
        values = {"PATH": PATH, "HOME": "/", "HOSTNAME": self.host.name, "PYTHONDONTWRITEBYTECODE": "1"}
        for source in container.get("envFrom", []):
            values |= self._cluster.config_maps[source["configMapRef"]["name"]]
        for each in container.get("env", []):
            if "valueFrom" in each:
                text = self._cluster.fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            else:
                text = re.sub(r"\$\((\w+)\)", lambda found: values[found.group(1)], each["value"])
            values[each["name"]] = text
        return values

    # Volumes.

    def _volume(self, volume: Document) -> str:
        """Make a volume; where it is on the host."""
        if "hostPath" in volume:
            return self._host_path(**volume["hostPath"])
        path = f"{VOLUMES}/{self.name}/{volume['name']}"
        directory = self.host.path(path)
        if "emptyDir" in volume:
            # A pod that is replaced gets new ones.
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            os.chown(directory, 0, self.group or 0)
            directory.chmod(0o2777 if self.group else 0o777)
            return path
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in self._files(volume).items():
            file = directory / name
            file.write_text(text)
            os.chown(file, 0, self.group or 0)
            file.chmod(0o440 if "projected" in volume and self.group else 0o644)
        return path

    def _host_path(self, path: str, type: str = "") -> str:
        there = self.host.path(path)
        if type == "DirectoryOrCreate":
            there.mkdir(parents=True, exist_ok=True)
        elif type == "FileOrCreate":
            there.touch()
        elif type == "CharDevice" and not there.is_char_device():
            raise FileNotFoundError(path)
        return path

    def _files(self, volume: Document) -> dict[str, str]:
        if "configMap" in volume:
            return self._items(volume["configMap"])
        found: dict[str, str] = {}
        for source in volume["projected"]["sources"]:
            if "serviceAccountToken" in source:
                found[source["serviceAccountToken"]["path"]] = self._cluster.token
            elif "configMap" in source:
                found |= self._items(source["configMap"])
            else:
                for item in source["downwardAPI"]["items"]:
                    found[item["path"]] = self._cluster.fields[item["fieldRef"]["fieldPath"]]
        return found

    def _items(self, source: Document) -> dict[str, str]:
        data = self._cluster.config_maps[source["name"]]
        return {item["path"]: data[item["key"]] for item in source["items"]}


class Container:
    """A container of a pod, from its entry in the manifest."""

    def __init__(self, pod: Pod, spec: Document) -> None:
        self.name: str = spec["name"]
        self._pod = pod
        self._host = pod.host
        self._spec = spec
        context = {**pod.spec.get("securityContext", {}), **spec["securityContext"]}
        dropped = context.get("capabilities", {}).get("drop", [])
        if dropped != ["ALL"]:
            raise ValueError(f"{self.name} keeps capabilities that a runtime gives")
        self.settings: dict[str, Any] = {
            "user": context["runAsUser"],
            "group": context.get("runAsGroup", 0),
            "groups": [pod.group] if pod.group else [],
            "capabilities": context["capabilities"].get("add", []),
            "no_new_privileges": context.get("allowPrivilegeEscalation") is False,
            "read_only": context.get("readOnlyRootFilesystem", False),
            "environment": pod.environment(spec),
            "command": [*spec["command"], *spec.get("args", [])],
            "volumes": pod.mounts(spec),
            "image": list(IMAGE),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log = pod.host.logs / f"{pod.host.name}.{self.name}.log"
        self._log_begins = 0

    def start(self) -> None:
        self._log_begins = self._log.stat().st_size if self._log.exists() else 0
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        init = [sys.executable, "-I", str(INIT), json.dumps(self.settings)]
        self._process = self._host.start([*command, *init], self._log.name)

    @property
    def pid(self) -> int:
        """The container's first process; 0 while there is none."""
        assert self._process
        below = tree(self._process.pid)[1:]
        return below[0].pid if below else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self, seconds: float) -> int:
        """Its exit status."""
        assert self._process
        return self._process.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        """To the container's first process."""
        if (pid := self.pid) != 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL it. SIGTERM, as any signal to PID 1, is thrown away until its program is ready for it."""
        assert self._process
        if pid := self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            self._process.kill()
        self.wait(5)

    def log(self) -> str:
        """What it has printed."""
        return self._log.read_bytes()[self._log_begins :].decode(errors="replace")

    def statuses(self) -> list[dict[str, str]]:
        """/proc/PID/status of each of its processes."""
        assert self._process
        return [_status(process.pid) for process in tree(self._process.pid)[1:]]

    @property
    def probes(self) -> list[str]:
        """The kinds of probes that it has."""
        return [kind for kind in ("livenessProbe", "readinessProbe") if kind in self._spec]

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """What ``kubectl exec`` and exec probes do: run a command inside, with the same rights."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root", "--wd=/", "--", "setpriv"]
        return subprocess.run(
            [*inside, *identity(self.settings), *command],
            env=self.settings["environment"],
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )

    def probe(self, kind: str) -> str:
        """Do one of its probes, ``livenessProbe`` or ``readinessProbe``: "" if it passes, else why not."""
        probe = self._spec[kind]
        if "exec" in probe:
            done = self._host.call(lambda: self.run(probe["exec"]["command"]))
            return "" if done.returncode == 0 else f"status {done.returncode}: {done.stdout}{done.stderr}"
        wanted = probe["httpGet"]
        url = f"http://127.0.0.1:{wanted['port']}{wanted['path']}"
        return self._host.call(lambda: _get(url))


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=3):
            return ""
    except urllib.error.HTTPError as e:
        with e:
            return f"{e.code}: {e.read().decode(errors='replace')}"
    except OSError as e:
        return str(e)
