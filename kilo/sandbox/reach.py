"""Which user can read what a process needs: modes and owners are looked at, access lists are not.

Whoever installs the agent in root's home, or keeps a kubeconfig that only root may read, would have a
worker that cannot load its code or its configuration. It then runs as the owner of what is in the way,
with nothing else more than it would have had, and that is said. Called before privileges are given up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from kilo.sandbox.profile import Profile

_READ, _SEARCH = 4, 1


def user_for(profile: Profile) -> tuple[int, str]:
    """The user that the process is to have, and why it is not the profile's, "" if it is."""
    groups = {profile.gid, *profile.groups}
    found = _in_the_way(profile, profile.uid, groups)
    if found is None:
        return profile.uid, ""
    path, owner = found
    user = owner if _in_the_way(profile, owner, groups) is None else 0
    return user, f"user {profile.uid} cannot read {path}; runs as user {user} instead"


def open_to_all(path: str) -> bool:
    """Whether everybody can come to ``path`` and read it. Raises OSError if it is not there."""
    return all(_may(os.stat(step), -1, set(), bits) for step, bits in _steps(path))


def _in_the_way(profile: Profile, uid: int, groups: set[int]) -> tuple[str, int] | None:
    """The first path that ``uid`` may not read or go through, and its owner."""
    for path in profile.reach:
        for step, bits in _steps(path):
            try:
                state = os.stat(step)
            except OSError:
                break  # not there, for whoever it is
            if not _may(state, uid, groups, bits):
                return step, state.st_uid
    return None


def _steps(path: str) -> Iterator[tuple[str, int]]:
    """All that is passed on the way to the file that ``path`` names, and what is needed of it."""
    real = os.path.realpath(path)
    folder = "/"
    for part in real.split("/")[1:-1]:
        folder = os.path.join(folder, part)
        yield folder, _SEARCH
    yield real, _READ | (_SEARCH if os.path.isdir(real) else 0)


def _may(state: os.stat_result, uid: int, groups: set[int], bits: int) -> bool:
    shift = 6 if state.st_uid == uid else 3 if state.st_gid in groups else 0
    return state.st_mode >> shift & bits == bits
