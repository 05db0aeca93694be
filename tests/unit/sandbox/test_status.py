"""Reading /proc, and the names of capabilities."""

from __future__ import annotations

import os

import pytest

from kilo.sandbox.status import CAPABILITIES, mask_of, names_of, read_status


def test_names_and_masks() -> None:
    assert names_of(0x3000) == ("NET_ADMIN", "NET_RAW")
    assert mask_of(("NET_RAW", "NET_ADMIN")) == 0x3000
    assert names_of(1 << 63) == ("CAP_63",)
    assert (mask_of(()), len(CAPABILITIES)) == (0, 41)
    with pytest.raises(ValueError):
        mask_of(("ALL",))


def test_our_own() -> None:
    status = read_status(os.getpid())
    assert status.uids == (os.getuid(), os.geteuid(), os.geteuid(), os.geteuid())
    assert status.uid == os.geteuid()
    assert status.threads >= 1


def test_a_process_that_is_gone() -> None:
    with pytest.raises(FileNotFoundError):
        read_status(1 << 22)
