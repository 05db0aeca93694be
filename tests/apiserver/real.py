"""A real API server for tests and the demo: etcd and kube-apiserver, where they are installed.

They are looked for in ``KUBEBUILDER_ASSETS`` and in /usr/local/kubebuilder/bin, where the tools of
Kubernetes' own projects put them. Everything they write is in one directory given by the caller.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.apiserver.admin import Admin, AdminError
from tests.apiserver.kubeconfig import write_kubeconfig

ASSETS = "/usr/local/kubebuilder/bin"
ADMIN, AGENT = "admin-token", "agent-token"
"""Of a member of system:masters, and of a user who may do what an agent needs, and nothing else."""
PATIENCE = 60.0
_RULES = [
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "patch", "watch"]},
    {"apiGroups": ["kilo.squat.ai"], "resources": ["peers"], "verbs": ["list", "watch"]},
    {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": ["get"]},
]


def find_assets() -> Path | None:
    """The directory that holds both programs, if there is one and openssl can make certificates."""
    for directory in (os.environ.get("KUBEBUILDER_ASSETS", ""), ASSETS):
        path = Path(directory)
        if directory and (path / "etcd").exists() and (path / "kube-apiserver").exists():
            return path if shutil.which("openssl") else None
    return None


class RealServer:
    """Both programs, running. ``address`` as in Standin; port 0: any that is free."""

    def __init__(self, assets: Path, directory: Path, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._assets = assets
        self._directory = directory
        self._host, self._port = address[0], address[1] or _free_port(address[0])
        self._processes: list[subprocess.Popen[bytes]] = []
        self._given_up = False
        self.ca = str(directory / "server.crt")

    @property
    def url(self) -> str:
        return f"https://{self._host}:{self._port}"

    def kubeconfig(self, path: Path, token: str = AGENT, url: str = "") -> str:
        """Write a kubeconfig to ``path``; its path as text. Who may read it needs no other file.

        ``url``: where the server is, for whom it is somewhere else.
        """
        return write_kubeconfig(path, url or self.url, token, ca_data=Path(self.ca).read_bytes())

    def admin(self) -> Admin:
        """A client that may do everything."""
        return Admin(self.url, ADMIN, self.ca)

    def __enter__(self) -> RealServer:
        self.start()
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Ready, with the agent's role in place, when this returns."""
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            self._make_keys()
            etcd = f"http://127.0.0.1:{_free_port('127.0.0.1')}"
            self._spawn("etcd", *_etcd_flags(self._directory, etcd))
            self._await("etcd", lambda: _answers(f"{etcd}/health", None))
            self._spawn("kube-apiserver", *self._apiserver_flags(etcd))
            context = ssl.create_default_context(cafile=self.ca)
            self._await("kube-apiserver", lambda: _answers(f"{self.url}/readyz", context))
            self._grant()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """The data is thrown away, so nobody is asked to end in good order."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes.clear()

    def give_up(self) -> None:
        """Let ``start``, in another thread, come to its end without the server."""
        self._given_up = True

    def pause(self) -> None:
        """Stop the API server's process: connections stay open, and nothing is answered."""
        self._processes[-1].send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._processes[-1].send_signal(signal.SIGCONT)

    def _spawn(self, name: str, *flags: str) -> None:
        self._go_on()
        with open(self._directory / f"{name}.log", "ab") as log:
            self._processes.append(subprocess.Popen([self._assets / name, *flags], stdout=log, stderr=log))

    def _await(self, name: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not ready():
            if self._processes[-1].poll() is not None or time.monotonic() > end:
                tail = (self._directory / f"{name}.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name} does not start: {tail}")
            self._go_on()
            time.sleep(0.05)

    def _go_on(self) -> None:
        if self._given_up:
            raise RuntimeError("nobody waits for the API server any more")

    def _make_keys(self) -> None:
        directory = self._directory
        names = f"subjectAltName=IP:{self._host},IP:127.0.0.1,DNS:localhost"
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        files = ["-keyout", str(directory / "server.key"), "-out", self.ca]
        _openssl("req", "-x509", *key, "-subj", "/CN=kube-apiserver", *files, "-addext", names)
        _openssl("genrsa", "-out", str(directory / "sa.key"), "2048")
        _openssl("rsa", "-in", str(directory / "sa.key"), "-pubout", "-out", str(directory / "sa.pub"))
        users = f'{ADMIN},admin,1,"system:masters"\n{AGENT},agent,2\n'
        (directory / "tokens.csv").write_text(users)

    def _apiserver_flags(self, etcd: str) -> list[str]:
        directory = self._directory
        return [
            f"--etcd-servers={etcd}",
            f"--bind-address={self._host}",
            f"--advertise-address={self._host}",
            f"--secure-port={self._port}",
            f"--tls-cert-file={self.ca}",
            f"--tls-private-key-file={directory / 'server.key'}",
            f"--token-auth-file={directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={directory / 'sa.pub'}",
            f"--service-account-signing-key-file={directory / 'sa.key'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
        ]

    def _grant(self) -> None:
        """Let the agent's user do what the manifests let an agent do."""
        group, base = "rbac.authorization.k8s.io", "/apis/rbac.authorization.k8s.io/v1"
        name = {"name": "kilo"}
        role = {"kind": "ClusterRole", "apiVersion": f"{group}/v1", "metadata": name, "rules": _RULES}
        binding = {
            "kind": "ClusterRoleBinding",
            "apiVersion": f"{group}/v1",
            "metadata": name,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", **name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "agent"}],
        }
        admin = self.admin()
        for path, value in (("clusterroles", role), ("clusterrolebindings", binding)):
            try:
                admin.request("POST", f"{base}/{path}", value)
            except AdminError as e:
                if e.status != 409:
                    raise
        admin.close()


def _etcd_flags(directory: Path, url: str) -> list[str]:
    data = directory / "etcd"
    data.mkdir(mode=0o700, exist_ok=True)
    peers = "http://127.0.0.1:0"
    return [
        f"--data-dir={data}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync",
        "--log-level=error",
    ]


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _answers(url: str, context: ssl.SSLContext | None) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {ADMIN}"})
    try:
        with urllib.request.urlopen(request, timeout=2, context=context) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
