"""Whether the paths of a profile still are what they were when the process entered its sandbox.

A Landlock rule is for the file or directory that a path meant then. Where another one was put in its
place (a volume mounted over it, a directory removed and made again, a program upgraded) the process may
not use that, and has to be started again. Files that are only read are left out: they are replaced all
the time, and what must follow them is given by the directory that they are in; so is the code, which a
process that runs has loaded. But one that was replaced by a file which this user may not read (a
kubeconfig, rotated) also asks for a start, which finds a user that may. So does a kubeconfig that names
other files than before, and a program that was awaited, once it is installed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from kilo.model.host import Sandbox
from kilo.sandbox.kubeconfig import named_by
from kilo.sandbox.landlock import PROC
from kilo.sandbox.profile import Access, Rule

_NONE = (0, 0, 0)
_Look = tuple[int, int, int]
"""Device and inode, and of a file who may start it."""


class Places:
    """What each path of ``rules`` is now, for as long as it lives; which files of ``read`` are read; and what
    the kubeconfig names, if ``named`` is its path and that."""

    def __init__(
        self,
        rules: Iterable[Rule],
        read: Iterable[str] = (),
        named: tuple[str, object] | None = None,
    ) -> None:
        self._known: dict[str, _Look] = {}
        self._made: set[str] = set()
        for rule in rules:
            if not rule.watched or rule.path.startswith(PROC):
                continue
            found, is_directory = _look(rule.path)
            if is_directory or rule.awaited or rule.access & (Access.WRITE | Access.EXECUTE):
                self._known[rule.path] = found
            if rule.directory or rule.file:
                self._made.add(rule.path)
        self._read = [path for path in read if not os.path.isdir(path) and not _closed(path)]
        self._named = named
        self._version = _version(named[0]) if named else _NONE

    def __bool__(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self._known or self._read or self._named)

    def moved(self) -> str:
        """A path that means something else than at first, or may not be read any more, "" if there is none.
        One that is gone may come back, unless it is for us to make."""
        for path, known in self._known.items():
            found, _ = _look(path)
            if found != known and (found != _NONE or path in self._made):
                return path
        return next((path for path in self._read if _closed(path)), "") or self._renamed()

    def _renamed(self) -> str:
        """The kubeconfig, if it names other files now, or a program."""
        if self._named is None or (version := _version(self._named[0])) == self._version:
            return ""
        self._version = version
        path, before = self._named
        return path if version != _NONE and named_by(path) != before else ""


@dataclass(frozen=True)
class Confined:
    """A process in its sandbox: what it ended up with, and the paths that it depends on."""

    sandbox: Sandbox
    places: Places


def _closed(path: str) -> bool:
    """Whether it is there, and this user may not read it."""
    return not os.access(path, os.R_OK) and os.path.exists(path)


def _look(path: str) -> tuple[_Look, bool]:
    """What it is, and whether it is a directory."""
    try:
        state = os.stat(path)
    except OSError:
        return _NONE, False
    is_directory = stat.S_ISDIR(state.st_mode)
    return (state.st_dev, state.st_ino, 0 if is_directory else state.st_mode & 0o111), is_directory


def _version(path: str) -> tuple[int, int, int]:
    """Changes with what is in the file."""
    try:
        state = os.stat(path)
    except OSError:
        return _NONE
    return state.st_ino, state.st_size, state.st_mtime_ns
