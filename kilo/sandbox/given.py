"""Which directories on Python's path workers may read, beside those that packages were installed into.

Whoever sets PYTHONPATH, or keeps packages in a directory of its own, has code in there that workers need. But
a rule is for all that is below a directory, and workers that are user 0 own what root keeps there. So it is
opened if it is no secret of anybody's: everybody can read it, and all that is at its top. Called by
kilo.sandbox.profiles, before privileges are given up.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import PurePath

from kilo.sandbox.reach import open_to_all

_CODE = (".py", ".pyc", ".so")
_NOBODY_S = ("/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/var/run")


def given() -> list[str]:
    """The directories and archives that this process was told to find code in: not the one in which it, or
    its script, was started, which Python puts first."""
    return [p for p in (sys.path if sys.flags.safe_path else sys.path[1:]) if p.startswith("/")]


def may_be_read(path: str, guarded: Iterable[str]) -> bool:
    """Whether there is code in it, and nothing that is to be kept from workers, as ``guarded`` is."""
    real = os.path.realpath(path)
    try:
        state = os.stat(real)
        if state.st_mode & stat.S_IWOTH or not open_to_all(real) or _is_wide(real, guarded):
            return False
        return stat.S_ISREG(state.st_mode) or (holds_code(real) and _is_open_inside(real))
    except OSError:
        return False


def holds_code(path: str) -> bool:
    """Whether modules, or packages with an ``__init__.py``, are in the directory. Raises OSError."""
    if not os.path.isdir(path):
        return False
    return any(
        name.endswith(_CODE) or os.path.isfile(os.path.join(path, name, "__init__.py"))
        for name in os.listdir(path)
    )


def is_below(path: str, folders: Iterable[str]) -> bool:
    """Whether it is one of ``folders``, or in one, by their real paths."""
    real = PurePath(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def _is_wide(real: str, guarded: Iterable[str]) -> bool:
    """The root, a directory in it, somebody's whole home, a place of the system's, or one around a secret."""
    folder = os.path.dirname(real)
    if os.path.dirname(folder) == folder or folder == "/home" or is_below(real, _NOBODY_S):
        return True
    return any(is_below(path, [real]) for path in (os.path.expanduser("~"), *guarded) if path)


def _is_open_inside(folder: str) -> bool:
    """Whether everybody may read what is at its top, but what Python itself puts there."""
    with os.scandir(folder) as entries:
        return all(
            entry.name == "__pycache__" or entry.is_symlink() or entry.stat().st_mode & stat.S_IROTH
            for entry in entries
        )
