"""Fixtures of the tests of flows."""

from __future__ import annotations

import pytest

from kilo.netctl import conntrack
from tests.integration.netctl.conntrack.watched import Watched
from tests.integration.netctl.firewall.hosts import Hosts


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "_PAUSE", 0.05)


@pytest.fixture(params=[0, 5000], ids=["many entries", "few entries"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the kernel is asked for what may matter, or for all."""
    monkeypatch.setattr(conntrack, "_FEW", request.param)


@pytest.fixture(params=["legacy", "nftables"])
def watched(wired: Hosts, request: pytest.FixtureRequest) -> Watched:
    return Watched(wired.host, request.param)
