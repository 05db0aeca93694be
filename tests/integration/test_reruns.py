"""Which tests may be run again, and what the summary and the exit status make of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONCE = """
    with open(__file__ + ".count", "a") as runs:
        runs.write(name)
    assert open(__file__ + ".count").read().count(name) == 2
"""


def run(tmp_path: Path, content: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """pytest with the plugin alone, on a file of tests in a directory of its own."""
    (tmp_path / "test_x.py").write_text(content)
    plugins = ["-p", "rerunfailures", "-p", "tests.reruns", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *flags, f"--rootdir={tmp_path}", "test_x.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def failing_once(count: int, mark: str) -> str:
    """Tests that fail in their first run and pass in the second."""
    parameters = [str(number) for number in range(count)]
    return (
        f"import pytest\n@pytest.mark.{mark}\n@pytest.mark.parametrize('name', {parameters})\n"
        f"def test_once(name):{ONCE}"
    )


@pytest.mark.parametrize("mark", ["integration", "e2e"])
def test_a_test_of_several_processes_that_fails_once_passes_and_is_named(tmp_path: Path, mark: str) -> None:
    done = run(tmp_path, failing_once(1, mark), "-W", "ignore::pytest.PytestUnknownMarkWarning")
    assert done.returncode == 0, done.stdout
    assert "run again after a failure" in done.stdout
    assert "\ntest_x.py::test_once[0]\n" in done.stdout
    assert "1 passed, 1 rerun" in done.stdout


def test_a_test_that_fails_twice_fails(tmp_path: Path) -> None:
    content = "import pytest\n@pytest.mark.e2e\ndef test_never():\n    assert False\n"
    done = run(tmp_path, content, "-W", "ignore::pytest.PytestUnknownMarkWarning")
    assert done.returncode == 1 and "1 failed, 1 rerun" in done.stdout, done.stdout


def test_a_unit_test_that_fails_once_fails(tmp_path: Path) -> None:
    done = run(tmp_path, failing_once(1, "other"), "-W", "ignore::pytest.PytestUnknownMarkWarning")
    assert done.returncode == 1 and "1 failed" in done.stdout and "1 rerun" not in done.stdout, done.stdout


@pytest.mark.parametrize(("count", "status"), [(3, 0), (4, 1)])
def test_more_than_three_tests_that_needed_a_second_run_fail_the_whole(
    tmp_path: Path, count: int, status: int
) -> None:
    done = run(tmp_path, failing_once(count, "e2e"), "-W", "ignore::pytest.PytestUnknownMarkWarning")
    assert done.returncode == status, done.stdout
    assert f"{count} passed, {count} rerun" in done.stdout
    assert ("more than 3 fail the run" in done.stdout) == bool(status)
