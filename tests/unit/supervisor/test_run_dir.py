"""The directory of the sockets: who may go through it, and who may write there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.bus import WORKERS
from kilo.errors import PermanentError
from kilo.supervisor.parent import prepare_run_dir


@pytest.fixture
def umask() -> Iterator[None]:
    """Files are closed to everybody else."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_it_is_open_whatever_the_umask(tmp_path: Path) -> None:
    prepare_run_dir(str(tmp_path / "a" / "kilo"))
    assert {mode(tmp_path / "a" / "kilo" / name) for name in ("", *WORKERS)} == {0o755}


@pytest.mark.parametrize(
    ("before", "after"), [(0o777, 0o755), (0o2770, 0o750), (0o1777, 0o1777), (0o700, 0o700)]
)
def test_only_its_owner_writes_there(tmp_path: Path, before: int, after: int) -> None:
    """Volumes of a kubelet's are everybody's; a sticky directory may be somebody else's too."""
    run_dir = tmp_path / "kilo"
    run_dir.mkdir()
    run_dir.chmod(before)
    prepare_run_dir(str(run_dir))
    assert mode(run_dir) == after


def test_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "kilo").mkdir()
    (tmp_path / "kilo" / "mesh").touch()
    with pytest.raises(PermanentError, match=r"cannot make .*/kilo/mesh: File exists"):
        prepare_run_dir(str(tmp_path / "kilo"))


def test_another_user_s_directory_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    with pytest.raises(PermanentError, match="is user 1234's"):
        prepare_run_dir(str(tmp_path))


def test_a_link_in_a_worker_s_place_is_put_away(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run_dir = tmp_path / "kilo"
    run_dir.mkdir()
    (run_dir / "mesh").symlink_to(tmp_path / "elsewhere")
    prepare_run_dir(str(run_dir))
    assert (run_dir / "mesh").is_dir() and not (run_dir / "mesh").is_symlink()
