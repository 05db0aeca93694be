"""The order and the grouping in which pytest-xdist hands out tests.

A work unit is what one worker runs in sequence: a module, or the whole virtual machine, so that fixtures
of a module are made once and the machine is booted once. The longest units are handed out first.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

VIRTUAL_MACHINE = "tests/vm/inside/"
ORDER = (
    VIRTUAL_MACHINE,
    "tests/e2e/test_chaos.py",
    "tests/e2e/test_survival.py",
    "tests/e2e/test_rest.py",
    "tests/e2e/",
    "tests/integration/netctl/test_diff.py",
    "tests/integration/",
)
"""Path prefixes of tests, those that take longest first; everything else comes last."""


def work_unit(nodeid: str) -> str:
    """The work unit that a test belongs to."""
    return VIRTUAL_MACHINE if nodeid.startswith(VIRTUAL_MACHINE) else nodeid.partition("::")[0]


def priority(nodeid: str) -> int:
    """The place of a test's kind in ``ORDER``."""
    found = (place for place, prefix in enumerate(ORDER) if nodeid.startswith(prefix))
    return next(found, len(ORDER))


class WorkUnitScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out work units in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return work_unit(nodeid)
