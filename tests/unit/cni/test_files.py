"""The directory: whole files or none, what belongs to the old file stays, nothing is left behind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kilo.cni import files
from kilo.errors import ProtocolError, TemporaryError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "10-kilo.conflist"


def read(path: Path) -> files.Found:
    found = files.read(str(path))
    assert found is not None
    return found


def test_a_new_file_can_be_read_by_everybody(path: Path) -> None:
    old = os.umask(0o077)
    try:
        files.replace(str(path), b"new", None)
    finally:
        os.umask(old)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == [path.name]


def test_mode_and_owner_stay_and_the_file_is_another(path: Path) -> None:
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.chown(path, 1234, 4321)
    before = read(path)
    files.replace(str(path), b"new", before)
    after = read(path)
    assert (after.mode, after.owner, after.group) == (0o640, 1234, 4321)
    assert after.content == b"new"
    assert after.version.inode != before.version.inode


def test_a_reader_sees_the_old_or_the_new(path: Path) -> None:
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        files.replace(str(path), b"new and longer", read(path))
        assert reader.read() == b"old"


def test_what_changed_meanwhile_is_not_overwritten(path: Path) -> None:
    path.write_bytes(b"old")
    found = read(path)
    path.write_bytes(b"somebody's")
    with pytest.raises(TemporaryError, match="changed by somebody else"):
        files.replace(str(path), b"new", found)
    with pytest.raises(TemporaryError, match="changed by somebody else"):
        files.replace(str(path), b"new", None)
    assert path.read_bytes() == b"somebody's"
    assert os.listdir(path.parent) == [path.name]


def test_no_temporary_file_stays_or_is_read_by_the_runtime(path: Path) -> None:
    temporary = Path(files.temporary_of(str(path)))
    assert not temporary.name.endswith(files.READ_BY_RUNTIME)
    temporary.write_bytes(b"of a run that was killed")
    files.replace(str(path), b"new", None)
    assert not temporary.exists()
    temporary.write_bytes(b"again")
    files.remove_leftover(str(path))
    assert os.listdir(path.parent) == [path.name]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"victim")
    os.symlink(victim, files.temporary_of(str(path)))
    files.replace(str(path), b"new", None)
    assert victim.read_bytes() == b"victim"
    assert not path.is_symlink()


def test_a_directory_that_cannot_be_written_is_named_with_the_errno(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "10-kilo.conflist"
    with pytest.raises(TemporaryError, match=f"cannot write {missing}: No such file or directory .errno 2"):
        files.replace(str(missing), b"new", None)
    assert files.read(str(missing)) is None
    in_a_file = tmp_path / "file"
    in_a_file.touch()
    with pytest.raises(TemporaryError, match=r"Not a directory \(errno 20\)"):
        files.read(f"{in_a_file}/10-kilo.conflist")


def test_only_plain_files_of_sane_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ProtocolError, match="not a regular file"):
        files.read(str(tmp_path / "fifo"))
    with pytest.raises(ProtocolError, match="not a regular file"):
        files.read(str(tmp_path))
    (tmp_path / "big").write_bytes(bytes(files.SIZE_MAX + 1))
    with pytest.raises(ProtocolError, match="larger than"):
        files.read(str(tmp_path / "big"))
    assert files.read(str(tmp_path / "none")) is None


def test_links_lead_to_their_file_also_where_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link, loop = tmp_path / "real" / "list", tmp_path / "link", tmp_path / "loop"
    link.symlink_to("real/list")
    assert files.target_of(str(link)) == str(real)
    real.touch()
    assert files.target_of(str(link)) == str(real)
    loop.symlink_to("loop")
    with pytest.raises(TemporaryError, match="cannot follow"):
        files.target_of(str(loop))


def test_the_version_tells_contents_apart(path: Path) -> None:
    assert files.version_of(str(path)) is None
    path.write_bytes(b"a")
    first = read(path)
    assert files.version_of(str(path)) == first.version
    assert not first.settled
    os.utime(path, ns=(1, 1))
    assert files.version_of(str(path)) != first.version


def test_who_comes_before(path: Path) -> None:
    for name in ("10-flannel.conflist", "00-README", "05.conf", "87-bridge.conflist", ".x.json.kilo-tmp"):
        (path.parent / name).touch()
    path.touch()
    assert files.before(str(path)) == ["05.conf", "10-flannel.conflist"]
    with pytest.raises(TemporaryError, match="cannot read"):
        files.before("/nonexistent/10-kilo.conflist")
