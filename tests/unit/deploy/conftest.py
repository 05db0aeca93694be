"""Which files need what a machine may not have, a Debian machine with nothing but its packages among them:
they are not collected then, which is said at the end, and others check the same by structure."""

from __future__ import annotations

import shutil

import pytest

from tests.apiserver.real import find_assets

MISSING = {
    "test_kustomize.py": "" if shutil.which("kubectl") else "kubectl",
    "test_systemd_verify.py": "" if shutil.which("systemd-analyze") else "systemd-analyze",
    "test_real_cluster.py": "" if find_assets() else "etcd and kube-apiserver",
}
collect_ignore = [name for name, missing in MISSING.items() if missing]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name in collect_ignore:
        terminalreporter.write_line(f"not collected: tests/unit/deploy/{name}: there is no {MISSING[name]}")
