"""Variables that look like a flag's and are none: a misspelt one would be passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping

from kilo.config import FLAGS, is_service_link, meant

PREFIX = "KILO_"
MOST_NAMED = 5
_LONGEST = 60


def misspelt(environment: Mapping[str, str]) -> str:
    """A line that names the ``KILO_`` variables that are no flag's, each with the flag's that is nearest;
    "" if there are none. Their values may be secret, and are not told."""
    flags = [flag.variable.removeprefix(PREFIX) for flag in FLAGS]
    unknown = sorted(
        name
        for name, value in environment.items()
        if name.startswith(PREFIX)
        and name.removeprefix(PREFIX) not in flags
        and not is_service_link(name, value)
    )
    if not unknown:
        return ""
    told = []
    for name in unknown[:MOST_NAMED]:
        shown = "".join(c if c.isprintable() else "?" for c in name[:_LONGEST])
        told.append(shown + meant(name.removeprefix(PREFIX).upper(), flags, PREFIX))
    if len(unknown) > MOST_NAMED:
        told.append(f"{len(unknown) - MOST_NAMED} more")
    return f"no flag has the name of these environment variables, which are ignored: {', '.join(told)}"
