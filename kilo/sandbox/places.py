"""Whether the paths of a profile still are what they were when the process entered its sandbox.

A Landlock rule is for the file or directory that a path meant then. Where another one was put in its
place (a volume mounted over it, a directory removed and made again, a program upgraded) the process may
not use that, and has to be started again. Files that are only read are left out: they are replaced all
the time, and what must follow them is given by the directory that they are in. But one that was replaced
by a file which this user may not read (a kubeconfig, rotated) also asks for a start, which finds a user
that may. And so does a program that was awaited, once it is installed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from kilo.model.host import Sandbox
from kilo.sandbox.profile import Access, Rule

_NONE = (0, 0)


class Places:
    """What each path of ``rules`` is now, for as long as it lives, and which files of ``read`` are read."""

    def __init__(self, rules: Iterable[Rule], read: Iterable[str] = ()) -> None:
        self._known: dict[str, tuple[int, int]] = {}
        self._made: set[str] = set()
        for rule in rules:
            found, is_directory = _look(rule.path)
            if is_directory or rule.awaited or rule.access & (Access.WRITE | Access.EXECUTE):
                self._known[rule.path] = found
            if rule.directory or rule.file:
                self._made.add(rule.path)
        self._read = [path for path in read if not os.path.isdir(path) and not _closed(path)]

    def __bool__(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self._known or self._read)

    def moved(self) -> str:
        """A path that means something else than at first, or may not be read any more, "" if there is none.
        One that is gone may come back, unless it is for us to make."""
        for path, known in self._known.items():
            found, _ = _look(path)
            if found != known and (found != _NONE or path in self._made):
                return path
        return next((path for path in self._read if _closed(path)), "")


@dataclass(frozen=True)
class Confined:
    """A process in its sandbox: what it ended up with, and the paths that it depends on."""

    sandbox: Sandbox
    places: Places


def _closed(path: str) -> bool:
    """Whether it is there, and this user may not read it."""
    return not os.access(path, os.R_OK) and os.path.exists(path)


def _look(path: str) -> tuple[tuple[int, int], bool]:
    """Device and inode, and whether it is a directory."""
    try:
        state = os.stat(path)
    except OSError:
        return _NONE, False
    return (state.st_dev, state.st_ino), stat.S_ISDIR(state.st_mode)
