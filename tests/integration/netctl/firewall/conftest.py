"""Fixtures of the firewall's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kilo.netctl.firewall.choice import Kind
from tests.integration.netctl.firewall.hosts import Namespace


@pytest.fixture
def host() -> Iterator[Namespace]:
    """Not the Host of netctl's other tests: a namespace that needs nothing else."""
    made = Namespace()
    yield made
    made.close()


@pytest.fixture(params=["legacy", "nftables"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Of a firewall: a test that asks for it is about either."""
    kinds: dict[str, Kind] = {"legacy": "legacy", "nftables": "nftables"}
    return kinds[request.param]
