"""The unit for hosts that run the agent as a service. There is no systemd here to start it with; where its
programs are, test_systemd_verify.py asks those."""

from __future__ import annotations

from configparser import RawConfigParser

from kilo.config import FLAGS
from kilo.supervisor.ending import DEATH, LIMITS
from tests.unit.deploy.rendered import DEPLOY, container

UNIT = DEPLOY / "systemd" / "kilo.service"


def service() -> dict[str, str]:
    parser = RawConfigParser(comment_prefixes=("#",), delimiters=("=",), strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    assert parser.sections() == ["Unit", "Service", "Install"]
    return dict(parser["Service"])


def test_it_may_what_the_container_may() -> None:
    added = container("kubeadm-single", "kilo")["securityContext"]["capabilities"]["add"]
    assert service()["CapabilityBoundingSet"].split() == [f"CAP_{name}" for name in added]
    assert service()["NoNewPrivileges"] == "yes"


def test_a_restart_leaves_the_data_plane_and_its_flags_are_known() -> None:
    variable, _, value = service()["Environment"].partition("=")
    assert (variable, value) == ("KILO_CLEAN_UP", "false")
    assert variable in {flag.variable for flag in FLAGS}


def test_the_agent_has_the_time_that_it_takes_to_end() -> None:
    assert service()["KillMode"] == "mixed", "the parent alone is told"
    assert float(service()["TimeoutStopSec"].removesuffix("s")) > sum(LIMITS) + len(LIMITS) * DEATH


def test_it_starts_the_agent_and_is_told_how_it_does() -> None:
    path, *words = service()["ExecStart"].split()
    assert path.endswith("/kg") and words == []
    assert service()["Type"] == "notify"
