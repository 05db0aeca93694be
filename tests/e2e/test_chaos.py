"""A storm of faults, as ``python -m tests.lab.chaos`` makes them: what it costs, and what it leaves."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.lab.chaos import FLAGS, PATIENCE, SPECS, differences, storm, summary
from tests.lab.faults import FAULTS, World
from tests.lab.mesh import Mesh

pytestmark = pytest.mark.long

SECONDS = 300.0
SEED = 11


@pytest.mark.timeout(900)
def test_a_storm_costs_what_it_must_and_leaves_nothing(logs: Path) -> None:
    with Mesh(SPECS, logs, FLAGS, print) as mesh:
        mesh.converge(PATIENCE)
        results = storm(mesh, SECONDS, SEED, print)
        left = differences(mesh, World(mesh, random.Random(0)))
    print(summary(results))
    assert {result.fault.name for result in results} == {fault.name for fault in FAULTS}, "each at least once"
    assert [result for result in results if not result.faithful] == []
    assert left == []
