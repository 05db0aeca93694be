"""A worker's own directory, handed from one user to the next."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kilo.sandbox.home import hand_over
from tests.integration.sandbox.conftest import FEWER_RIGHTS

REPOSITORY = Path(__file__).resolve().parents[3]


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
        after = (tmp_path / "lock").stat()
        assert (after.st_ino, after.st_uid) == (os.fstat(lock.fileno()).st_ino, 11072), "it can be asked for"
        with open(tmp_path / "lock") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("owner_of_lock", [0, 11072, 12345])
def test_a_held_lock_goes_to_the_new_user_whoever_had_it(tmp_path: Path, owner_of_lock: int) -> None:
    """Also where no permission may be passed over on the way."""
    with open(tmp_path / "lock", "w") as lock, socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus.sock"))
        (tmp_path / "lock").chmod(0o600)
        for path in (tmp_path, tmp_path / "lock"):
            os.chown(path, owner_of_lock, owner_of_lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = f"from kilo.sandbox.home import hand_over; hand_over({str(tmp_path)!r}, 11072, 11072)"
        subprocess.run([*FEWER_RIGHTS, sys.executable, "-c", code], check=True, cwd=REPOSITORY)
        assert (tmp_path / "lock").stat().st_uid == 11072
    assert (tmp_path / "bus.sock").exists()
    assert owner(tmp_path) == (11072, 11072, "0o2750")


def test_a_lock_that_nothing_can_be_said_of_counts_as_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lock").touch()
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus.sock"))
        opened = os.open

        def full(path: str, *rest: int, **more: int) -> int:
            if path == "lock":
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
            return opened(path, *rest, **more)

        monkeypatch.setattr(os, "open", full)
        hand_over(str(tmp_path), 11072, 11072)
    assert sorted(os.listdir(tmp_path)) == ["bus.sock", "lock"]
    assert owner(tmp_path) == (11072, 11072, "0o2750")


def test_a_socket_in_the_place_of_the_lock_goes(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "lock"))
        hand_over(str(tmp_path), 11072, 11072)
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_a_file_of_somewhere_else_is_not_given(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "file").touch()
    os.link(tmp_path / "file", tmp_path / "home/lock")
    with open(tmp_path / "file") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        hand_over(str(tmp_path / "home"), 11072, 11072)
    assert (tmp_path / "file").stat().st_uid == 0


def test_where_somebody_lives_his_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with socket.socket(socket.AF_UNIX) as bus, open(tmp_path / "lock") as lock:
        bus.bind(str(tmp_path / "bus.sock"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(2):  # who has to wait asks again
            hand_over(str(tmp_path), 11072, 11072)
    assert sorted(os.listdir(tmp_path)) == ["bus.sock", "lock"]


@pytest.mark.parametrize("owner_of_lock", [0, 11072])
def test_a_lock_that_is_none_keeps_nobody_from_the_directory(tmp_path: Path, owner_of_lock: int) -> None:
    (tmp_path / "lock").symlink_to("/etc/passwd")
    os.lchown(tmp_path / "lock", owner_of_lock, 0)
    hand_over(str(tmp_path), 11072, 11072)
    assert owner(tmp_path) == (11072, 11072, "0o2750")


def test_a_link_is_not_followed_and_nothing_is_raised(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("real")
    hand_over(str(tmp_path / "link"), 11072, 11072)
    hand_over(str(tmp_path / "none"), 11072, 11072)
    assert owner(tmp_path / "real") == (0, 0, "0o755")
