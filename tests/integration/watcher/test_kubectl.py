"""What the watcher has in common with kubectl, asked of a real one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.apiserver.kubeconfig import write_kubeconfig
from tests.unit.watcher import kubectl
from tests.unit.watcher.asking import JANE
from tests.unit.watcher.oddserver import OddServer
from tests.unit.watcher.test_client_impersonation import AS_JANE, impersonated
from tests.unit.watcher.test_kubeconfig import EXPECTED


@pytest.mark.parametrize("shape", sorted(EXPECTED))
def test_shape_is_read_by_kubectl_as_expected(shape: str, tmp_path: Path) -> None:
    expected = {k: v for k, v in EXPECTED[shape].items() if k not in ("kg", "why")}
    assert kubectl.judged(shape, tmp_path) == expected


def test_user_that_acts_as_another_sends_what_kubectl_sends(
    certificates: Path, verified: OddServer, tmp_path: Path
) -> None:
    ca = str(certificates / "server.crt")
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", verified.url, ca=ca, user=JANE)
    command = ["kubectl", f"--kubeconfig={kubeconfig}", "get", "--raw", "/x"]
    subprocess.run(command, env={**os.environ, "HOME": str(tmp_path)}, check=True, timeout=60)
    assert {tuple(impersonated(head)) for head in verified.requests} == {tuple(AS_JANE)}
