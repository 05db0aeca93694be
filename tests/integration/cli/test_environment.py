"""``KILO_`` variables that are no flag's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kilo.cli.environment import misspelt
from kilo.config import FLAGS, FlagError, load

LINKS = {
    "KILO_SERVICE_HOST": "10.0.0.1",
    "KILO_SERVICE_PORT": "1107",
    "KILO_SERVICE_PORT_METRICS": "1107",
    "KILO_PORT": "tcp://10.0.0.1:1107",
    "KILO_PORT_1107_TCP": "tcp://10.0.0.1:1107",
    "KILO_PORT_1107_TCP_PROTO": "tcp",
    "KILO_PORT_1107_TCP_PORT": "1107",
    "KILO_PORT_1107_TCP_ADDR": "10.0.0.1",
    "KILO_HEALTH_PORT": "udp://[2001:db8::1]:1107",
    "KILO_HEALTH_SERVICE_HOST": "10.0.0.1",
}
"""What a pod is given for Services called kilo and kilo-health."""


def kg(variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kilo", *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=90,
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("KILO_MESH_GRANULARTIY", "KILO_MESH_GRANULARITY"),
        ("KILO_RUNDIR", "KILO_RUN_DIR"),
        ("KILO_kubeconfig", "KILO_KUBECONFIG"),
        ("KILO_CLEANUP", "KILO_CLEAN_UP"),
    ],
)
def test_a_misspelt_one_is_named_with_the_nearest_and_without_its_value(name: str, nearest: str) -> None:
    done = kg({name: "secret"}, "version")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert f"{name} (is {nearest} meant?)" in done.stderr
    assert "secret" not in done.stderr


def test_it_is_named_as_well_where_the_agent_does_not_start() -> None:
    done = kg({"KILO_CLUSTER": "x"}, "--port=0")
    first, second = done.stderr.splitlines()
    assert first.endswith("which are ignored: KILO_CLUSTER")
    assert "--port: '0' is not allowed" in second


def test_many_make_no_long_line_and_move_no_cursor() -> None:
    said = misspelt({f"KILO_X\x1b{n}" + 500 * "Y": "" for n in range(20)})
    assert said.endswith("15 more")
    assert said.isprintable() and len(said) < 500


def test_flags_and_the_links_of_services_are_no_mistakes() -> None:
    assert misspelt(LINKS) == ""
    assert misspelt({flag.variable: "x" for flag in FLAGS} | {"PATH": "/bin", "KILOMETRES": "3"}) == ""
    assert "KILO_HEALTH_PORT" in misspelt({"KILO_HEALTH_PORT": "1107"}), "no link has such a value"


def test_the_link_of_a_service_is_no_port_of_wireguards() -> None:
    """It would end every agent in a namespace with a Service called kilo."""
    assert load({}, LINKS).port == 51820
    assert load({"port": ["51821"]}, LINKS).port == 51821
    assert load({}, {"KILO_PORT": "51822"}).port == 51822
    with pytest.raises(FlagError, match="KILO_PORT: 'tcp:' is not allowed"):
        load({}, {"KILO_PORT": "tcp:"})
