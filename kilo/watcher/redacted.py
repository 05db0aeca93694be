"""What other programs and libraries say when they fail, fit for a log: one line, and no secret. Pure.

Nobody can tell a secret from a word for certain. What follows a telling name, and what looks random,
is left out; so what helps a person may be, too. Used by kilo.watcher.plugin and session.
"""

from __future__ import annotations

import re

LONGEST = 300
"""Characters that are shown."""
_NAMED = re.compile(
    r"([\w-]*(?:token|secret|password|passwd|authorization|api[-_]?key|assertion)[\"']?\s*[=:]\s*[\"']?)"
    r"(?:(?:bearer|basic)\s+)?[^\s\"',;&}]+",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"\b(bearer|basic)\s+\S+", re.IGNORECASE)
_USER = re.compile(r"//[^/\s@]+@")
_WORD = "[A-Za-z0-9+_=~%]"
_RANDOM = re.compile(
    rf"[A-Za-z0-9+_=.~%-]{{40,}}|(?<!{_WORD})(?=[A-Za-z+_=~%]*[0-9])(?=[0-9+_=~%]*[A-Za-z]){_WORD}{{20,}}"
)


def redacted(text: str) -> str:
    """``text`` for a person."""
    line = "".join(filter(str.isprintable, " ".join(text[: 16 * LONGEST].split())))
    line = _NAMED.sub(r"\1***", line)
    line = _SCHEME.sub(r"\1 ***", line)
    return _RANDOM.sub("***", _USER.sub("//***@", line))[:LONGEST]
