"""The order in which tests are handed to the processes that run them."""

from __future__ import annotations

from pathlib import Path

from tests.schedule import ORDER, VIRTUAL_MACHINE, priority, work_unit

ROOT = Path(__file__).parents[2]


def test_work_unit_of_the_virtual_machine_is_one_for_all_its_modules() -> None:
    assert work_unit("tests/vm/inside/test_tunnel.py::test_a[x]") == VIRTUAL_MACHINE
    assert work_unit("tests/vm/inside/test_wireguard.py::TestKernel::test_b") == VIRTUAL_MACHINE


def test_work_unit_of_other_tests_is_their_module() -> None:
    assert work_unit("tests/unit/test_graph.py::test_a[b::c]") == "tests/unit/test_graph.py"
    assert work_unit("tests/vm/test_machine.py::test_a") == "tests/vm/test_machine.py"


def test_priority_of_what_takes_longest_comes_first() -> None:
    names = ("vm/inside/test_a", "e2e/test_survival", "e2e/test_a", "integration/cni/test_a", "unit/test_a")
    found = [priority(f"tests/{place}.py::test_b") for place in names]
    assert found == sorted(set(found))


def test_priority_of_every_kind_of_test_that_has_one_names_files_that_exist() -> None:
    assert [prefix for prefix in ORDER if not (ROOT / prefix).exists()] == []
