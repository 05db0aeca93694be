"""When a path no longer is what a rule was made for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kilo.sandbox import Access, Places, Rule
from kilo.sandbox.kubeconfig import named_by


@pytest.fixture
def rules(tmp_path: Path) -> list[Rule]:
    (tmp_path / "folder").mkdir()
    (tmp_path / "written").touch()
    (tmp_path / "read").touch()
    return [
        Rule(str(tmp_path / "folder"), Access.READ),
        Rule(str(tmp_path / "written"), Access.READ | Access.WRITE),
        Rule(str(tmp_path / "read"), Access.READ),
        Rule(str(tmp_path / "missing"), Access.READ | Access.WRITE),
        Rule("/proc/self", Access.READ),
    ]


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.touch()
    os.rename(new, path)


def test_what_is_written_in_them_moves_nothing(tmp_path: Path, rules: list[Rule]) -> None:
    places = Places(rules)
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "written").write_text("text")
    replace(tmp_path / "read")
    assert places.moved() == ""


def test_a_directory_that_was_made_again(tmp_path: Path, rules: list[Rule]) -> None:
    places = Places(rules)
    keep = os.open(tmp_path / "folder", os.O_PATH)  # or the new one may have its number
    shutil.rmtree(tmp_path / "folder")
    assert places.moved() == "", "it may come back"
    (tmp_path / "folder").mkdir()
    assert places.moved() == str(tmp_path / "folder")
    os.close(keep)


def test_a_file_that_is_written_and_was_replaced(tmp_path: Path, rules: list[Rule]) -> None:
    places = Places(rules)
    replace(tmp_path / "written")
    assert places.moved() == str(tmp_path / "written")


def test_one_that_came_later(tmp_path: Path, rules: list[Rule]) -> None:
    places = Places(rules)
    (tmp_path / "missing").touch()
    assert places.moved() == str(tmp_path / "missing")


def test_a_program_that_was_awaited(tmp_path: Path) -> None:
    program = tmp_path / "wireguard-go"
    places = Places([Rule(str(program), Access.READ | Access.EXECUTE, awaited=True)])
    assert places.moved() == ""
    program.touch()
    assert places.moved() == str(program)


@pytest.mark.parametrize("before", ["open", "missing"])
def test_a_file_that_was_read_and_may_not_be_any_more(tmp_path: Path, before: str) -> None:
    """Root is asked here as a user that nothing is open to: access(2) looks at the real user."""
    path = tmp_path / "kubeconfig"
    if before == "open":
        path.touch()
        path.chmod(0o644)
    with as_nobody(tmp_path):
        places = Places([], [str(path), str(tmp_path)])
        assert places and places.moved() == ""
    path.unlink(missing_ok=True)
    assert places.moved() == "", "it may come back"
    path.touch(0o600)
    with as_nobody(tmp_path):
        assert places.moved() == str(path)
        assert not Places([], [str(path)]), "one that never could be read asks for nothing"


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """The real user is nobody; all on the way to ``folder`` is open meanwhile."""
    closed = [each for each in (folder, *folder.parents) if not each.stat().st_mode & 0o001]
    modes = {each: each.stat().st_mode for each in closed}
    for each in closed:
        each.chmod(modes[each] | 0o055)
    os.setresuid(65534, 0, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        for each, mode in modes.items():
            each.chmod(mode)


def test_code_that_was_replaced_and_what_is_in_proc_move_nothing(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    places = Places([Rule(str(code), Access.READ, watched=False), Rule("/proc/self", Access.READ)])
    assert not places
    assert places.moved() == ""


def test_a_program_that_may_be_started_only_later(tmp_path: Path) -> None:
    """It was copied first, and made a program then."""
    program = tmp_path / "wireguard-go"
    program.touch(0o644)
    places = Places([Rule(str(program), Access.READ | Access.EXECUTE, awaited=True)])
    assert places.moved() == ""
    program.chmod(0o755)
    assert places.moved() == str(program)


def test_a_kubeconfig_that_names_another_file(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("users: [{name: a, user: {tokenFile: one}}]")
    places = Places([], [], (str(path), named_by(str(path))))
    assert places.moved() == ""
    path.write_text("# as before\nusers: [{name: a, user: {tokenFile: one}}]")
    assert places.moved() == ""
    path.write_text("users: [{name: a, user: {exec: {command: get-token}}}]")
    assert places.moved() == str(path)
