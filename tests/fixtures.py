"""Fixtures of tests in more than one folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.sockets import SO_PASSRIGHTS

NUMBERS = itertools.count()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends to read and to write; a test may close either."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.fixture
def refusable() -> bool:
    """Whether this kernel lets a socket refuse descriptors that are sent to it: from Linux 6.16 on."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            return probe.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS) == 1
        except OSError:
            return False


@pytest.fixture
def interface() -> Iterator[str]:
    """The name of one; the wireguard-go behind it ends when its socket's file is gone."""
    name = f"kgi{os.getpid() % 100_000}n{next(NUMBERS)}"
    yield name
    Path(f"/run/wireguard/{name}.sock").unlink(missing_ok=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may go through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix=f"kgs-{os.getpid()}-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
