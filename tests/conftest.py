"""What holds for every test."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from xdist.remote import Producer

from tests.schedule import WorkUnitScheduling, priority
from tests.signals import reset_ignored

TESTS = Path(__file__).parent

pytest_plugins = ["tests.reruns", "tests.optional", "tests.fixtures", "tests.apiserver.fixtures"]

# How long one example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("here")


def pytest_configure() -> None:
    reset_ignored()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for kind in ("integration", "e2e"):
            if item.path.is_relative_to(TESTS / kind):
                item.add_marker(kind)
    items.sort(key=lambda item: priority(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WorkUnitScheduling:
    return WorkUnitScheduling(config, log)


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a short name: the path of a socket in it may have 107 bytes at most."""
    return tmp_path_factory.mktemp("t")
