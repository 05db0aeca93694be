"""What the service account may do, by structure; test_real_cluster.py asks a real server."""

from __future__ import annotations

import re

import pytest

from kilo.watcher.translate import ANNOTATIONS_TO_REMOVE
from tests.unit.deploy.rendered import NAMES, documents, one

ACCOUNT = {"kind": "ServiceAccount", "name": "kilo", "namespace": "kube-system"}


@pytest.mark.parametrize("name", NAMES)
def test_the_role_is_these_rights_and_no_more(name: str) -> None:
    assert one(name, "ClusterRole")["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "patch", "watch"]},
        {"apiGroups": ["kilo.squat.ai"], "resources": ["peers"], "verbs": ["list", "watch"]},
        {
            "apiGroups": ["apiextensions.k8s.io"],
            "resources": ["customresourcedefinitions"],
            "resourceNames": ["peers.kilo.squat.ai"],
            "verbs": ["get"],
        },
    ]
    binding = one(name, "ClusterRoleBinding")
    assert binding["subjects"] == [ACCOUNT]
    assert binding["roleRef"]["name"] == "kilo"
    bound = [d["metadata"]["name"] for d in documents(name) if "Role" in d["kind"]]
    assert bound == ["kilo", "kilo"], "no other role, and no other binding"


@pytest.mark.parametrize("name", NAMES)
def test_the_policy_is_in_force_for_that_account(name: str) -> None:
    policy = one(name, "ValidatingAdmissionPolicy", "kilo-own-node")["spec"]
    assert policy["failurePolicy"] == "Fail"
    (condition,) = policy["matchConditions"]
    account = f"system:serviceaccount:{ACCOUNT['namespace']}:{ACCOUNT['name']}"
    assert condition["expression"] == f'request.userInfo.username == "{account}"'
    binding = one(name, "ValidatingAdmissionPolicyBinding", "kilo-own-node")["spec"]
    assert binding == {"policyName": "kilo-own-node", "validationActions": ["Deny"]}


def test_the_policy_allows_the_annotations_that_the_agent_writes() -> None:
    policy = one("kubeadm-split", "ValidatingAdmissionPolicy", "kilo-own-node")["spec"]
    (owned,) = [v["expression"] for v in policy["variables"] if v["name"] == "owned"]
    names = re.findall(r'"([^"]+)"', owned.partition(".map")[0])
    assert {f"kilo.squat.ai/{name}" for name in names} == set(ANNOTATIONS_TO_REMOVE)


def test_the_policy_asks_for_the_own_node() -> None:
    policy = one("kubeadm-split", "ValidatingAdmissionPolicy", "kilo-own-node")["spec"]
    (own,) = [v["expression"] for v in policy["variables"] if v["name"] == "ownNode"]
    assert "authentication.kubernetes.io/node-name" in own
    expressions = {v["expression"] for v in policy["validations"]}
    assert {'variables.ownNode != ""', "variables.ownNode == request.name"} <= expressions
