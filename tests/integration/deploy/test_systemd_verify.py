"""The unit, read by systemd. Collected where there is a systemd-analyze."""

from __future__ import annotations

import subprocess

from tests.unit.deploy.rendered import DEPLOY


def test_systemd_knows_every_line_of_the_unit() -> None:
    command = ["systemd-analyze", "verify", str(DEPLOY / "systemd" / "kilo.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert [line for line in done.stderr.splitlines() if "is not executable" not in line] == []
