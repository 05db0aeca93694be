"""The distribution: builds, installs into an empty environment, and runs from there."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0].split("-")[0] for n in names} == {"kilo", "kilo_mesh"}
    assert "kilo/py.typed" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_the_sdist_holds_what_a_packager_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "kilo/__init__.py"} <= names


def test_the_wheel_runs_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    pins = tmp_path / "pins.txt"
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    pins.write_text("\n".join(line.rstrip(" \\") for line in lock if line[:1].isalpha()))
    python = tmp_path / "venv/bin/python"
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "-q", "--python", sys.executable, tmp_path / "venv")
    run(uv, "pip", "install", "-q", "--python", python, "--constraint", pins, wheel)
    kg = tmp_path / "venv/bin/kg"
    assert run(kg, "version", cwd="/").strip() == "0.1.0"
    assert "netctl" in run(kg, "--help", cwd="/")
    code = (
        "import importlib\n"
        "from kilo.supervisor.child import FACTORIES\n"
        "for factory in FACTORIES.values():\n"
        "    module, _, attribute = factory.partition(':')\n"
        "    getattr(importlib.import_module(module), attribute)\n"
    )
    run(python, "-I", "-c", code, cwd="/")
