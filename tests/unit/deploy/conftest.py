"""Which files need what this machine may not have: they are not collected then, and others check the same
by structure."""

from __future__ import annotations

import shutil

from tests.apiserver.real import find_assets

collect_ignore = []
if shutil.which("kubectl") is None:
    collect_ignore.append("test_kustomize.py")
if find_assets() is None:
    collect_ignore.append("test_real_cluster.py")
