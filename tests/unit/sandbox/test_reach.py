"""Who can read a file, by the modes and owners of all that is on the way to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kilo.sandbox import Profile
from kilo.sandbox.reach import user_for


@pytest.mark.parametrize(
    "mode, group, folder, user",
    [
        (0o644, 0, 0o755, 11071),
        (0o640, 11072, 0o755, 11071),  # by a group that it is in
        (0o640, 0, 0o755, 0),
        (0o644, 0, 0o750, 0),  # nobody gets there
        (0o604, 11072, 0o755, 0),  # its group may not, so it may not either
    ],
)
def test_the_user_that_can(place: Path, mode: int, group: int, folder: int, user: int) -> None:
    (place / "etc").mkdir()
    path = place / "etc/config"
    path.touch()
    os.chown(path, 0, group)
    path.chmod(mode)
    (place / "etc").chmod(folder)
    found, why = user_for(Profile(uid=11071, gid=11071, groups=(11072,), reach=(str(path),)))
    assert found == user
    assert bool(why) == (user != 11071)


def test_a_link_is_followed_and_what_is_not_there_is_in_nobodys_way(place: Path) -> None:
    (place / "secret").touch(0o600)
    (place / "link").symlink_to("secret")
    assert user_for(Profile(uid=1, gid=1, reach=(str(place / "link"),)))[0] == 0
    assert user_for(Profile(uid=1, gid=1, reach=(str(place / "none/x"),))) == (1, "")
