"""What a check finds."""

from __future__ import annotations

from typing import Literal

import msgspec

Verdict = Literal["ok", "warn", "fail", "unknown"]


class Finding(msgspec.Struct, frozen=True):
    """``check``: its name, ``found``: what it saw, ``mend``: what to do about it, where it is not ok.

    ``warn`` may be as it should be, or costs only some; ``unknown`` could not be looked at.
    """

    check: str
    verdict: Verdict
    found: str
    mend: str = ""
