"""A pytest plugin: files of tests that need what a machine with nothing but Debian's packages may not have.

They are not collected there, which the end of the run says; other tests check the same by structure.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.apiserver.real import find_assets

TESTS = Path(__file__).parent
KUBECTL_MINOR = 30
"""The first minor version of kubectl that reads odd kubeconfigs as tests/data/kubeconfigs says."""


def without_kubectl() -> str:
    """What is missing where kubectl is not installed, or older than the tests expect; "" where it is."""
    needed = f"kubectl 1.{KUBECTL_MINOR} or newer"
    if not shutil.which("kubectl"):
        return needed
    command = ["kubectl", "version", "--client", "-o", "json"]
    done = subprocess.run(command, capture_output=True, check=False)
    try:
        minor = json.loads(done.stdout)["clientVersion"]["minor"]
    except (ValueError, KeyError):
        return needed
    return "" if int(minor.rstrip("+")) >= KUBECTL_MINOR else needed


NEEDS = {
    "integration/deploy/test_kustomize.py": "" if shutil.which("kubectl") else "kubectl",
    "integration/deploy/test_systemd_verify.py": "" if shutil.which("systemd-analyze") else "systemd-analyze",
    "integration/watcher/test_kubectl.py": without_kubectl(),
    "unit/deploy/test_real_cluster.py": "" if find_assets() else "etcd and kube-apiserver",
}
MISSING = {path: program for path, program in NEEDS.items() if program}
"""Files that are not collected, and what is missing for each."""


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    inside = collection_path.is_relative_to(TESTS)
    return True if inside and str(collection_path.relative_to(TESTS)) in MISSING else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for path, program in MISSING.items():
        terminalreporter.write_line(f"not collected: tests/{path}: there is no {program}")
