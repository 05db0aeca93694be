"""How a machine is heard and ended, with a shell in its place."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vm.conftest import reports
from tests.vm.machine import REPOSITORY, Limits, Machine, MachineFailed, newest_kernel

TEST = "tests/x.py::test_x"
PASSED = f"""
echo '{{"hello": "9"}}'
echo noise
echo '{{"test": "{TEST}", "report": {{"when": "setup"}}}}'
echo '{{"test": "{TEST}", "report": {{"when": "call"}}}}'
echo '{{"finished": "{TEST}"}}'
"""


def machine(script: str, directory: Path, **limits: float) -> Machine:
    return Machine([TEST], directory, ["sh", "-c", script], Limits(**limits))


def gone(pid: int) -> bool:
    """Whether no process has that number, or only one that has ended."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True


def test_reports_come_as_they_are_told(tmp_path: Path) -> None:
    heard = machine(PASSED, tmp_path)
    assert [report["when"] for report in heard.reports(TEST)] == ["setup", "call"]
    assert (tmp_path / "tests").read_text() == TEST + "\n"
    heard.close()


def test_a_machine_that_ends_early_says_what_it_said(tmp_path: Path) -> None:
    heard = machine("echo hello there; echo panic >&2; exit 3", tmp_path)
    with pytest.raises(MachineFailed, match=r"ended before tests/x.py::test_x did(.|\n)*panic"):
        list(heard.reports(TEST))
    with pytest.raises(MachineFailed, match="not run: the machine ended before"):
        list(heard.reports("tests/x.py::test_y"))
    assert "panic" in heard.log.read_text()


@pytest.mark.parametrize(
    ("greeting", "limits", "error"),
    [
        ("", {"boot": 0.3}, "did not boot"),
        ("""echo '{"hello": "9"}'; """, {"silence": 0.3}, "was silent for too long"),
        ("""while sleep 0.1; do echo '{"hello": "9"}'; done & """, {"life": 2.0}, "was silent for too long"),
    ],
)
def test_a_machine_that_hangs_is_killed(
    tmp_path: Path, greeting: str, limits: dict[str, float], error: str
) -> None:
    heard = machine(f"{greeting}exec sleep 1000", tmp_path, **limits)
    with pytest.raises(MachineFailed, match=error):
        list(heard.reports(TEST))
    assert gone(heard._process.pid)


def test_nothing_is_left_when_who_made_it_is_killed(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from tests.vm.conftest import reports
from tests.vm.machine import Machine
Machine(["x"], Path({str(tmp_path)!r}), ["sh", "-c", "sleep 1000 & sleep 1000"])
print("made", flush=True)
time.sleep(1000)
"""
    maker = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert maker.stdout and maker.stdout.readline() == b"made\n"

    def below(pid: int) -> list[int]:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(n) for n in found] + [deeper for n in found for deeper in below(int(n))]

    end = time.monotonic() + 10
    while len(pids := below(maker.pid)) < 4 and time.monotonic() < end:
        time.sleep(0.02)
    assert len(pids) == 4, "unshare, the shell, and two that sleep"
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    while not all(map(gone, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert all(map(gone, pids))


def told(config: pytest.Config, nodeid: str, outcome: str, said: object) -> str:
    """A script that tells of a test of that outcome."""
    report = pytest.TestReport(nodeid, ("x.py", 1, "x"), {}, outcome, said, "call")  # type: ignore[arg-type]
    data = config.hook.pytest_report_to_serializable(config=config, report=report)
    lines = [{"test": nodeid, "report": data}, {"finished": nodeid}]
    return "\n".join(f"echo {shlex.quote(json.dumps(line))}" for line in lines)


@pytest.mark.parametrize(
    ("outcome", "said", "here", "text"),
    [
        ("passed", None, "passed", ""),
        ("failed", "no answer to pings", "failed", "no answer to pings"),
        ("skipped", ("x.py", 1, "Skipped: no tunl0"), "failed", "skipped in the machine"),
    ],
)
def test_what_fails_or_is_skipped_inside_fails_here(
    request: pytest.FixtureRequest, tmp_path: Path, outcome: str, said: object, here: str, text: str
) -> None:
    item = request.node
    heard = machine(told(request.config, item.nodeid, outcome, said), tmp_path)
    (report,) = reports(item, lambda _: heard)
    assert report.outcome == here
    assert text in report.longreprtext
    heard.close()


def test_a_machine_that_cannot_be_had_is_a_failure(request: pytest.FixtureRequest) -> None:
    def none(item: pytest.Item) -> Machine:
        raise MachineFailed("no kernel to boot")

    (report,) = reports(request.node, none)
    assert (report.outcome, report.longreprtext) == ("failed", "no kernel to boot")


@pytest.mark.vm
def test_a_kernel_is_installed() -> None:
    release = newest_kernel().name.removeprefix("vmlinuz-")
    assert (Path("/lib/modules") / release / "modules.dep").exists()
