"""Takes privileges away from the process that calls ``enter``, and says what it ended up with.

A worker calls it between being forked and loading its own code. Nothing here gives a privilege, and
nothing can be undone. The parts, a module each: descriptors, identity (user, groups, capabilities),
landlock, seccomp; ``status`` is what anybody can read of a process; ``profiles`` what each worker gets.
"""

from kilo.sandbox.entry import enter
from kilo.sandbox.places import Confined, Places
from kilo.sandbox.profile import Access, Profile, Refusal, Result, Rule, shown
from kilo.sandbox.status import Status, read_status

__all__ = [
    "Access",
    "Confined",
    "Places",
    "Profile",
    "Refusal",
    "Result",
    "Rule",
    "Status",
    "enter",
    "read_status",
    "shown",
]
