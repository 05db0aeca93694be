"""Which of the kernel's bits a rule becomes, by the version of the interface."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilo.sandbox import Access, Rule
from kilo.sandbox.landlock import handled, make_missing, rights

EVERYTHING = Access(63)


@pytest.mark.parametrize(
    "version, bits",
    [(1, 0x1FFF), (2, 0x3FFF), (3, 0x7FFF), (4, 0x7FFF), (5, 0xFFFF), (6, 0xFFFF), (7, 0xFFFF)],
)
def test_an_older_kernel_is_asked_for_what_it_knows(version: int, bits: int) -> None:
    assert handled(version) == bits


def test_no_rule_gives_devices_links_or_moves_between_directories() -> None:
    make_char, fifo, block, link, refer = 1 << 6, 1 << 10, 1 << 11, 1 << 12, 1 << 13
    assert rights(EVERYTHING, True) & (make_char | fifo | block | link | refer) == 0


def test_a_file_is_given_what_files_have() -> None:
    assert rights(EVERYTHING, False) == 0b1100_0000_0000_0111
    assert rights(Access.LIST, False) == 0
    assert rights(Access.READ, True) == 0b1100


def test_what_is_missing_is_made_where_a_rule_wants_it(tmp_path: Path) -> None:
    make_missing(
        (
            Rule(str(tmp_path / "a/state"), Access.READ, directory=0o700),
            Rule(str(tmp_path / "lock"), Access.READ, file=0o600),
            Rule(str(tmp_path / "none"), Access.READ),
            Rule("/proc/self/none/x", Access.READ, directory=0o700),
        )
    )
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in tmp_path.rglob("*")} == {
        "a": "0o755",
        "state": "0o700",
        "lock": "0o600",
    }


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("x")
    lock.chmod(0o640)
    make_missing((Rule(str(lock), Access.READ, file=0o600), Rule(str(lock), Access.READ, directory=0o700)))
    assert (lock.read_text(), oct(lock.stat().st_mode & 0o777)) == ("x", "0o640")
