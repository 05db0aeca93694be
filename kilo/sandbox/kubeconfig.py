"""Which files a kubeconfig names, and whether it names a program: no more is looked at here.

What is wrong with the file is for the watcher to say; here it names nothing then. Called by
kilo.sandbox.profiles and kilo.sandbox.places, in the watcher's process, which loads the parser anyway.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

_LIMIT = 16 << 20
_OF_CLUSTERS = ("certificate-authority",)
_OF_USERS = ("client-certificate", "client-key", "tokenFile")


@dataclass(frozen=True)
class Named:
    """``files``: the kubeconfig itself and those it names, absolute. ``plugin``: the command of a user's
    credential plugin, absolute unless it is to be found on PATH; "" if there is none."""

    files: tuple[str, ...] = ()
    plugin: str = ""


def named_by(path: str) -> Named:
    """What the file names, in whichever of its contexts. Raises nothing."""
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    files, plugin = [path], ""
    content = _content(path)
    for kind, inner, fields in (("clusters", "cluster", _OF_CLUSTERS), ("users", "user", _OF_USERS)):
        for entry in _parts(content.get(kind), inner):
            names = [entry.get(field) for field in fields]
            files += [os.path.join(folder, name) for name in names if isinstance(name, str) and name]
            command = _plugin_of(entry)
            if command:
                plugin = os.path.join(folder, command) if os.sep in command else command
    return Named(tuple(dict.fromkeys(files)), plugin)


def _content(path: str) -> dict[str, Any]:
    from kilo import goyaml  # loads the parser

    try:
        with open(path, "rb") as file:
            content = goyaml.load(file.read(_LIMIT))
    except (OSError, *goyaml.ERRORS):
        return {}
    return content if isinstance(content, dict) else {}


def _parts(entries: object, inner: str) -> list[dict[str, Any]]:
    """What counts of the entries of a list."""
    if not isinstance(entries, list):
        return []
    found = [entry.get(inner) for entry in entries if isinstance(entry, dict)]
    return [part for part in found if isinstance(part, dict)]


def _plugin_of(user: dict[str, Any]) -> str:
    plugin = user.get("exec")
    command = plugin.get("command") if isinstance(plugin, dict) else None
    return command if isinstance(command, str) else ""
