"""A worker's own directory, handed from one user to the next."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

from kilo.sandbox.home import hand_over


def owner(path: Path) -> tuple[int, int, str]:
    state = path.lstat()
    return state.st_uid, state.st_gid, oct(stat.S_IMODE(state.st_mode))


def test_what_another_user_left_goes(tmp_path: Path) -> None:
    home = tmp_path / "mesh"
    home.mkdir()
    (home / "lock").touch()
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(home / "bus.sock"))
    (home / "link").symlink_to("/etc/passwd")
    (home / "ours").touch()
    os.chown(home / "ours", 11072, 11072)
    hand_over(str(home), 11072, 11072)
    assert owner(home) == (11072, 11072, "0o2750")
    assert os.listdir(home) == ["ours"]


def test_what_somebody_holds_stays(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with open(tmp_path / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hand_over(str(tmp_path), 11072, 11072)
    assert (tmp_path / "lock").stat().st_uid == 0


def test_where_somebody_lives_his_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with socket.socket(socket.AF_UNIX) as bus, open(tmp_path / "lock") as lock:
        bus.bind(str(tmp_path / "bus.sock"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        hand_over(str(tmp_path), 11072, 11072)
    assert sorted(os.listdir(tmp_path)) == ["bus.sock", "lock"]


def test_a_link_is_not_followed_and_nothing_is_raised(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("real")
    hand_over(str(tmp_path / "link"), 11072, 11072)
    hand_over(str(tmp_path / "none"), 11072, 11072)
    assert owner(tmp_path / "real") == (0, 0, "0o755")
