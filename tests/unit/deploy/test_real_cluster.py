"""The manifests in a real API server: what each agent's own token may do, and what Pod Security says.

Collected where etcd and kube-apiserver are installed. Tokens are made as a kubelet makes them, bound to
a pod, so that they say on which node it runs.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.apiserver import CRDS_FILE, Admin, AdminError, RealServer
from tests.apiserver.real import find_assets
from tests.apiserver.store import CRD, CRDS, NODES, PEERS
from tests.feeding import eventually
from tests.unit.deploy.rendered import PATHS, SPLIT, containers, documents, one, pod

NAMESPACE = "kube-system"
ACCOUNT = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
MERGE = "application/merge-patch+json"
BEFORE = {"kilo.squat.ai/location": "berlin", "kilo.squat.ai/key": "old", "other.example/a": "1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server with everything of a manifest applied, two nodes, and an agent's pod on each."""
    assets = find_assets()
    assert assets
    with RealServer(assets, tmp_path_factory.mktemp("api")) as server, ExitStack() as stack:
        admin = stack.enter_context(closing(server.admin()))
        admin.create_crd(CRDS_FILE)
        for kind in ("clusterrolebindings", "clusterroles"):
            admin.request("DELETE", f"/apis/rbac.authorization.k8s.io/v1/{kind}/kilo")
        for document in documents("kubeadm-split"):
            admin.request("POST", PATHS[document["kind"]], document)
        for name in ("ada", "bob"):
            admin.create_node(name)
            spec = {
                "nodeName": name,
                "serviceAccountName": "kilo",
                "containers": [{"name": "x", "image": "x"}],
            }
            admin.request("POST", PODS, {"metadata": {"name": f"kilo-{name}"}, "spec": spec})
        await_policy(server)
        yield server


@pytest.fixture(autouse=True)
def nodes(server: RealServer) -> None:
    """The nodes as they were."""
    admin = server.admin()
    for name in ("ada", "bob"):
        values = dict.fromkeys(admin.get(NODES, name)["metadata"].get("annotations", {}))
        admin.patch(NODES, name, {"metadata": {"annotations": values | BEFORE, "labels": None}})
    admin.close()


def token_of(server: RealServer, pod: str = "") -> str:
    """A token of the account, bound to ``pod`` as a kubelet asks for it; "" for one that is not bound."""
    admin = server.admin()
    spec: dict[str, Any] = {"expirationSeconds": 600}
    if pod:
        uid = admin.request("GET", f"{PODS}/{pod}")["metadata"]["uid"]
        spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}
    answer = admin.request("POST", f"{ACCOUNT}/kilo/token", {"spec": spec})
    admin.close()
    return str(answer["status"]["token"])


def agent_of(server: RealServer, node: str) -> Admin:
    return Admin(server.url, token_of(server, f"kilo-{node}"), server.ca)


def await_policy(server: RealServer) -> None:
    """Policies are in force some moments after they were made."""
    with closing(agent_of(server, "ada")) as agent:
        refused = partial(refusal, agent, "bob", annotate(key="x"))
        eventually(lambda: "ValidatingAdmissionPolicy" in refused(), 30, "the policy is in force")


def refusal(agent: Admin, node: str, patch: dict[str, Any]) -> str:
    """What the server says to a patch that it refuses; "" if it takes it."""
    try:
        agent.request("PATCH", f"{NODES.path}/{node}", patch, MERGE)
    except AdminError as e:
        assert e.status in (403, 422), e
        return str(e)
    return ""


@pytest.fixture(scope="module")
def agent(server: RealServer) -> Iterator[Admin]:
    """The agent of the node ada."""
    agent = agent_of(server, "ada")
    yield agent
    agent.close()


def annotate(**values: str | None) -> dict[str, Any]:
    named = {f"kilo.squat.ai/{key.replace('_', '-')}": value for key, value in values.items()}
    return {"metadata": {"annotations": named}}


def test_an_agent_announces_its_own_node_and_takes_that_back(agent: Admin) -> None:
    all_of_them = {
        "cni_compatibility_ip": "",
        "discovered_endpoints": "{}",
        "endpoint": "203.0.113.1:51820",
        "granularity": "location",
        "internal_ip": "10.0.0.1/24",
        "key": "new",
        "last_seen": "1",
        "wireguard_ip": "10.4.0.1/16",
    }
    assert refusal(agent, "ada", annotate(**all_of_them)) == ""
    assert refusal(agent, "ada", annotate(**dict.fromkeys(all_of_them))) == ""


@pytest.mark.parametrize(
    "patch",
    [
        annotate(location="oslo"),
        annotate(leader="true"),
        annotate(allowed_location_ips="0.0.0.0/0"),
        annotate(force_endpoint="203.0.113.9:1"),
        annotate(location=None),
        {"metadata": {"annotations": {"other.example/a": "2"}}},
        {"metadata": {"annotations": {"other.example/a": None}}},
        {"metadata": {"annotations": {"other.example/b": "1"}}},
        {"metadata": {"annotations": None}},
        {"metadata": {"labels": {"topology.kubernetes.io/region": "oslo"}}},
        {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}},
        {"metadata": {"finalizers": ["other.example/f"]}},
        {
            "metadata": {
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "0"}],
            }
        },
        {"spec": {"unschedulable": True}},
        {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}},
        {"spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"]}},
    ],
    ids=lambda patch: json.dumps(patch)[:60],
)
def test_it_may_change_nothing_else_of_its_own_node(agent: Admin, patch: dict[str, Any]) -> None:
    assert "ValidatingAdmissionPolicy 'kilo-own-node'" in refusal(agent, "ada", patch)


def test_it_may_not_touch_another_node(server: RealServer, agent: Admin) -> None:
    said = refusal(agent, "bob", annotate(key="forged"))
    assert "the agent of node ada may not change node bob" in said
    other = agent_of(server, "bob")
    assert refusal(other, "bob", annotate(key="bob's own")) == ""
    other.close()


def test_a_token_of_no_pod_may_patch_nothing(server: RealServer) -> None:
    nobody = Admin(server.url, token_of(server), server.ca)
    for node in ("ada", "bob"):
        assert "does not say on which node" in refusal(nobody, node, annotate(key="x"))
    nobody.close()


def test_an_administrator_is_not_held_up(server: RealServer) -> None:
    admin = server.admin()
    assert refusal(admin, "bob", annotate(location="rome")) == ""
    admin.close()


def status_of(agent: Admin, method: str, path: str, body: Any = None) -> int:
    try:
        agent.request(method, path, body, MERGE if method == "PATCH" else "application/json")
    except AdminError as e:
        return e.status
    return 200


def test_the_account_may_read_what_the_watcher_reads(agent: Admin) -> None:
    for path in (NODES.path, PEERS.path, f"{CRDS.path}/{CRD}"):
        assert status_of(agent, "GET", path) == 200


def test_and_nothing_else(agent: Admin) -> None:
    refused = [
        ("GET", f"{NODES.path}/ada"),
        ("POST", NODES.path),
        ("DELETE", f"{NODES.path}/bob"),
        ("PATCH", f"{NODES.path}/ada/status"),
        ("POST", PEERS.path),
        ("GET", CRDS.path),
        ("GET", f"{CRDS.path}/others.example.com"),
        ("GET", PODS),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets"),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps"),
        ("POST", f"{ACCOUNT}/kilo/token"),
    ]
    for method, path in refused:
        assert status_of(agent, method, path, {} if method != "GET" else None) == 403, (method, path)
    rules = agent.request(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        {
            "kind": "SelfSubjectRulesReview",
            "apiVersion": "authorization.k8s.io/v1",
            "spec": {"namespace": "x"},
        },
    )["status"]["resourceRules"]
    own = [r for r in rules if not r["resources"][0].startswith("selfsubject")]
    role = one("kubeadm-split", "ClusterRole")["rules"]
    assert sorted(own, key=str) == sorted(({"verbs": r["verbs"], **r} for r in role), key=str)


def warnings(server: RealServer, path: str, body: Any) -> list[str]:
    """The warnings that come with a dry run of creating ``body``."""
    url = urlsplit(server.url)
    context = ssl.create_default_context(cafile=server.ca)
    assert url.hostname
    connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=90, context=context)
    headers = {"Authorization": "Bearer admin-token", "Content-Type": "application/json"}
    connection.request("POST", f"{path}?dryRun=All", json.dumps(body), headers)
    answer = connection.getresponse()
    said = answer.read().decode()
    assert answer.status == 201, said
    found = answer.headers.get_all("Warning") or []
    connection.close()
    return found


@pytest.mark.parametrize("name", SPLIT)
def test_pod_security_has_nothing_else_against_it(server: RealServer, name: str) -> None:
    """The server's own check of the standard "restricted" names the exceptions, each with its containers."""
    label = {"pod-security.kubernetes.io/warn": "restricted"}
    with closing(server.admin()) as admin:
        admin.request("PATCH", f"/api/v1/namespaces/{NAMESPACE}", {"metadata": {"labels": label}}, MERGE)
    daemonset = one(name, "DaemonSet")
    daemonset = {**daemonset, "metadata": {**daemonset["metadata"], "name": "another"}}
    (said,) = warnings(server, PATHS["DaemonSet"], daemonset)
    reasons = re.sub(r'\\"', '"', said).partition('"restricted:latest": ')[2]
    found = dict(re.findall(r'([^,(][^(]*) \((.*?)\)(?:, |"$)', reasons))
    root = {c["name"] for c in containers(pod(name))} & {"install-cni", "netctl", "cni"}
    assert found.keys() == {
        "host namespaces",
        "unrestricted capabilities",
        "restricted volume types",
        "runAsNonRoot != true",
        "runAsUser=0",
    }
    assert set(quoted(found["unrestricted capabilities"])) == {"netctl", "NET_ADMIN", "NET_RAW"}
    assert set(quoted(found["runAsUser=0"])) == set(quoted(found["runAsNonRoot != true"])) == root
    host = {v["name"] for v in pod(name)["volumes"] if "hostPath" in v}
    assert set(quoted(found["restricted volume types"])) == host | {"hostPath"}


def quoted(text: str) -> list[str]:
    return re.findall(r'"([^"]+)"', text)
