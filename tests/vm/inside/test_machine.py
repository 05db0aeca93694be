"""What the machine must have for the others to mean anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def test_this_is_another_kernel_that_has_what_is_tested() -> None:
    assert "-amd64" in os.uname().release
    for module in ("wireguard", "ipip", "ip_set_hash_net", "nf_tables"):
        subprocess.run(["modprobe", module], check=True)
        assert Path(f"/sys/module/{module}").is_dir()


def test_fail() -> None:
    print("hello")
    a = 5
    assert a == 3
