"""What kubectl makes of a kubeconfig: the expectations in tests/data/kubeconfigs were written by this.

    python -m tests.unit.watcher.kubectl

writes them anew, where kubectl is installed. ``kg`` and ``why`` of an entry are kept: they are written by
hand, where kg does otherwise than kubectl.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

SHAPES = Path(__file__).parents[2] / "data" / "kubeconfigs"
EXPECTED = SHAPES / "expected.json"
NOWHERE = "https://127.0.0.1:1"
"""The server of all shapes, where nothing listens."""


def installed() -> bool:
    return shutil.which("kubectl") is not None


def shapes() -> list[str]:
    return sorted(path.name for path in SHAPES.iterdir() if path.is_file() and path != EXPECTED)


def judged(shape: str, home: Path) -> dict[str, Any]:
    """``kubectl``: loads, refuses, asks (for a user name), or finds no server. Where it loads, the cluster
    and the user that count."""
    asked = _kubectl(shape, home, "get", "--raw", "/x", "--request-timeout=5s")
    lines = [
        line for line in asked.stderr.splitlines() if line.startswith(("error:", "The ", "Unable ", "Please"))
    ]
    said = lines[-1] if lines else asked.stderr.strip()
    if "localhost:8080" in said:
        return {"kubectl": "finds no server"}
    if "Please enter Username" in asked.stderr + asked.stdout:
        return {"kubectl": "asks"}
    if said.lower().startswith("error"):
        return {"kubectl": "refuses"}
    viewed = _kubectl(shape, home, "config", "view", "--raw", "--minify", "-o", "json")
    assert viewed.returncode == 0, (shape, said, viewed.stderr)
    view = json.loads(viewed.stdout)
    users = view["users"] or [{"user": {}}]
    return {"kubectl": "loads", "cluster": view["clusters"][0]["cluster"], "user": users[0]["user"]}


def _kubectl(shape: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["kubectl", f"--kubeconfig={shape}", f"--cache-dir={home}", *words]
    env = {"PATH": os.environ["PATH"], "HOME": str(home)}
    return subprocess.run(
        command,
        cwd=SHAPES,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def write(home: Path) -> None:
    """The expectations of all shapes, anew."""
    before = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    found = {}
    for shape in shapes():
        kept = {name: before.get(shape, {}).get(name) for name in ("kg", "why")}
        found[shape] = {**judged(shape, home), **{name: text for name, text in kept.items() if text}}
    EXPECTED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory))
