from __future__ import annotations

from typing import Any

import pytest

from kilo.mesh.firewall import FirewallPlan, firewall
from kilo.model.settings import Settings
from tests.unit.mesh.states import STATES, topology


def planned(state: str, hostname: str, **flags: Any) -> FirewallPlan:
    return firewall(topology(STATES[state], hostname, **flags), Settings(hostname, **flags))


def test_what_stays_in_the_mesh_is_not_masqueraded() -> None:
    sets = planned("with peers", "n1", service_cidrs=("10.43.0.0/16",)).sets
    assert sets["masquerade_from"] == {"10.2.1.0/24", "10.5.0.1/32", "10.6.0.0/24", "10.5.0.2/32"}
    assert sets["no_masquerade_to"] == {
        *(f"10.2.{i}.0/24" for i in (1, 2, 3, 4)),
        *(f"10.0.0.{i}/32" for i in (1, 2, 3, 4)),
        *("10.4.0.1/32", "10.4.0.2/32"),
        *("10.5.0.1/32", "10.6.0.0/24", "10.5.0.2/32", "10.43.0.0/16"),
    }


def test_only_the_own_location_masquerades_what_goes_to_its_printers() -> None:
    assert planned("with a printer", "n2").sets["masquerade_to"] == {"192.168.7.9/32"}
    assert planned("with a printer", "n3").sets["masquerade_to"] == set()


def test_without_cni_pods_are_somebody_elses() -> None:
    sets = planned("two locations", "n1", cni=False, iptables_forward_rules=True).sets
    assert sets["masquerade_from"] == sets["forward_accept_from"] == sets["forward_accept_to"] == set()


def test_a_leader_forwards_for_its_segment_and_others_for_themselves() -> None:
    leader = planned("with a printer", "n1", iptables_forward_rules=True).sets
    segment = {"10.2.1.0/24", "10.2.2.0/24", "10.0.0.1/32", "10.0.0.2/32", "192.168.7.9/32"}
    assert leader["forward_accept_from"] == leader["forward_accept_to"] == segment
    follower = planned("with a printer", "n2", iptables_forward_rules=True).sets
    assert follower["forward_accept_from"] == follower["forward_accept_to"] == {"10.2.2.0/24"}
    assert not planned("with a printer", "n1").sets["forward_accept_from"]


def test_ipip_is_accepted_from_the_own_segment_alone() -> None:
    plan = planned("two locations", "n2")
    assert plan.ipip_guard
    assert plan.sets["ipip_accept_from"] == {"10.0.0.1/32", "10.0.0.2/32"}
    full = planned("two locations", "n2", mesh_granularity="full")
    assert full.ipip_guard
    assert full.sets["ipip_accept_from"] == set()


@pytest.mark.parametrize("flags", [{"encapsulate": "never"}, {"local": False}, {"compatibility": "flannel"}])
def test_who_runs_no_ipip_does_not_judge_it(flags: dict[str, Any]) -> None:
    plan = planned("two locations", "n1", **flags)
    assert not plan.ipip_guard
    assert plan.sets["ipip_accept_from"] == set()


def test_without_a_private_address_there_is_no_tunnel_to_guard() -> None:
    assert not planned("one without private address", "n5").ipip_guard
