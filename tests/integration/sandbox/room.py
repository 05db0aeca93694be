"""Runs one function in a process of its own that may ruin itself: ``python -m tests.integration.sandbox.room
FUNCTION ARGUMENTS`` calls FUNCTION of deeds.py with ARGUMENTS (JSON) and prints what it returns.

It runs in a mount namespace in which everybody can read Python and the agent's code, wherever they are
installed: under root's home nobody but root could.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

from kilo.sandbox.profiles import code
from tests.lab.opened import hidden

_BIND = 4096 | 16384
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    result = _libc.mount(*texts, ctypes.c_ulong(flags), None if options is None else options.encode())
    assert result == 0, f"{target}: {os.strerror(ctypes.get_errno())}"


def open_to_all(paths: tuple[str, ...]) -> None:
    """Put an empty directory in the place of a closed one, and in it nothing but ``paths``."""
    found = hidden(paths)
    held = {path: os.open(path, os.O_PATH) for path in found}
    for folder in set(found.values()):
        _mount("none", folder, "tmpfs", 0, "mode=755")
    for path, fd in held.items():
        os.makedirs(path, 0o755, exist_ok=True)
        _mount(f"/proc/self/fd/{fd}", path, None, _BIND)
        os.close(fd)


if __name__ == "__main__":
    from tests.integration.sandbox import deeds

    open_to_all(code())
    print(json.dumps(getattr(deeds, sys.argv[1])(*json.loads(sys.argv[2]))), flush=True)
    os._exit(0)
