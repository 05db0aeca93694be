"""Starts agents, and sees to it that they are gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.supervisor.agents import Agent


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def start_agent(
        output: int | None = None,
        hurry: bool = False,
        environment: Mapping[str, str] | None = None,
        **orders: str,
    ) -> Agent:
        agents.append(Agent(tmp_path, orders, output, hurry, environment))
        return agents[-1]

    yield start_agent
    for agent in agents:
        agent.end()
