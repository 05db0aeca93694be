"""Processes that give up their privileges."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tests.integration.sandbox import deeds

Inside = Callable[..., Any]


FEWER_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]
"""Before a command: root that may pass over no permissions, as in a container with only what it needs."""


def command(deed: str, *arguments: object, before: Sequence[str] = ()) -> list[str]:
    """Runs a function of deeds.py in a mount namespace of its own."""
    inner = [sys.executable, "-m", "tests.integration.sandbox.room", deed, json.dumps(arguments)]
    return ["unshare", "--mount", *before, *inner]


def inside(deed: Callable[..., Any], *arguments: object) -> Any:
    """What ``deed`` returns, called in a process of its own."""
    assert getattr(deeds, deed.__name__) is deed
    ran = subprocess.run(command(deed.__name__, *arguments), capture_output=True, text=True, timeout=90)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
