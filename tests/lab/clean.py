"""``python -m tests.lab.clean``: removes what labs left whose makers are gone.

Their hosts ended with their makers; what can be left is a directory of logs, and a host whose
holder is stuck. Labs that still have their makers are not touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

from tests.lab.host import HOLDER

DIRECTORY_PREFIX = "kilo-lab-"


def directory() -> tempfile.TemporaryDirectory[str]:
    """A directory for a lab's logs, that goes with the lab, and whose name says who made it."""
    return tempfile.TemporaryDirectory(prefix=f"{DIRECTORY_PREFIX}{os.getpid()}-")


def orphaned_holders() -> list[int]:
    """The processes that hold hosts whose makers are gone."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            match = re.search(f"{HOLDER}:([0-9]+):", path.read_text(errors="replace"))
            if match and not Path(f"/proc/{match[1]}").exists():
                found.append(int(path.parent.name))
    return found


def orphaned_directories() -> list[Path]:
    """The directories of labs whose makers are gone."""
    found = []
    for path in Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}[0-9]*-*"):
        maker = path.name.removeprefix(DIRECTORY_PREFIX).partition("-")[0]
        if not Path(f"/proc/{maker}").exists():
            found.append(path)
    return found


def main() -> None:
    for pid in orphaned_holders():
        print(f"ending process {pid}, which holds a host")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in orphaned_directories():
        print(f"removing {path}")
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
