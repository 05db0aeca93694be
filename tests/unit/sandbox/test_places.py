"""When a path no longer is what a rule was made for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kilo.sandbox import Access, Places, Rule


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
