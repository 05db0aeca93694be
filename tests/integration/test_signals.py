"""Programs that tests start have the default action of every signal, however the test run was started."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.signals import SIGNALS

START = """
import signal, subprocess, sys
signal.signal(signal.Signals[sys.argv[1]], signal.SIG_IGN)
from tests.signals import reset_ignored
if sys.argv[2] == "reset":
    reset_ignored()
signal.raise_signal(signal.Signals[sys.argv[1]])
show = "import signal,sys; print(signal.getsignal(signal.Signals[sys.argv[1]]) is signal.SIG_IGN)"
subprocess.run([sys.executable, "-c", show, sys.argv[1]], check=True)
"""


@pytest.mark.parametrize(("how", "ignored"), [("reset", False), ("not", True)])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_that_is_ignored_is_not_ignored_by_programs_started_after_a_reset(
    number: signal.Signals, how: str, ignored: bool
) -> None:
    """The process that resets goes on ignoring it: it raises the signal itself."""
    done = subprocess.run(
        [sys.executable, "-c", START, number.name, how],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert done.stdout == f"{ignored}\n"
