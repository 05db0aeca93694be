"""What the machine must have for the other tests to mean anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def test_the_kernel_is_debians_and_has_what_is_tested() -> None:
    assert "-amd64" in os.uname().release
    for module in ("wireguard", "ipip", "ip_set_hash_net", "nf_tables"):
        subprocess.run(["modprobe", module], check=True)
        assert Path(f"/sys/module/{module}").is_dir()
