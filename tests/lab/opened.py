"""Which directories keep other users than root from Python and the agent's code, as root's home does: where
workers have users of their own, tests put others in their place, in a mount namespace."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable


def hidden(paths: Iterable[str]) -> dict[str, str]:
    """Those of ``paths``, resolved, that not everybody can come to, and the first directory in the way."""
    found = {}
    for path in map(os.path.realpath, paths):
        folder = ""
        for part in path.split("/")[1:]:
            folder += f"/{part}"
            if not stat.S_IMODE(os.stat(folder).st_mode) & stat.S_IXOTH:
                found[path] = folder
                break
    return found
