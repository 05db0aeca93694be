"""Fixtures of the firewall's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.netctl.firewall.hosts import Namespace


@pytest.fixture
def host() -> Iterator[Namespace]:
    """Not the Host of netctl's other tests: a namespace that needs nothing else."""
    made = Namespace()
    yield made
    made.close()
