"""The plugin of the pytest inside: it tells the outer one what becomes of each test."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

DESCRIPTOR = 3
"""Where messages go, one JSON line each: guest.sh opens it."""


def tell(**message: Any) -> None:
    os.write(DESCRIPTOR, json.dumps(message).encode() + b"\n")


class Relay:
    """``test`` and ``report`` for every phase of a test, then ``finished`` with its node id."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_sessionstart(self) -> None:
        tell(hello=pytest.__version__)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        tell(test=report.nodeid, report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        tell(finished=nodeid)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Relay(config))
