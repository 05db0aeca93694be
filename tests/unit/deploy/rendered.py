"""The rendered manifests as the tests read them: documents by kind and name, and containers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
MANIFESTS = DEPLOY / "manifests"
OVERLAYS = DEPLOY / "kustomize" / "overlays"
PLATFORMS = ("kubeadm", "k3s", "flannel", "cilium", "userspace")
OWN_CNI = ("kubeadm", "k3s", "userspace")
SPLIT = tuple(f"{platform}-split" for platform in PLATFORMS)
SINGLE = tuple(f"{platform}-single" for platform in PLATFORMS)
NAMES = (*SPLIT, *SINGLE, "uninstall")
"""All rendered manifests."""

PATHS = {
    "ServiceAccount": "/api/v1/namespaces/kube-system/serviceaccounts",
    "ConfigMap": "/api/v1/namespaces/kube-system/configmaps",
    "DaemonSet": "/apis/apps/v1/namespaces/kube-system/daemonsets",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ValidatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": (
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
    ),
}
"""Where the documents of a kind are in the API."""

Document = dict[str, Any]


@lru_cache
def documents(name: str) -> tuple[Document, ...]:
    """The documents of one rendered manifest."""
    return tuple(yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text()))


def one(name: str, kind: str, called: str = "kilo") -> Document:
    """The document of that kind and name."""
    (found,) = [d for d in documents(name) if d["kind"] == kind and d["metadata"]["name"] == called]
    return found


def flags(name: str) -> dict[str, str]:
    """The environment that a manifest's ConfigMap gives to every container."""
    (found,) = [d["data"] for d in documents(name) if d["kind"] == "ConfigMap"]
    return dict(found)


def daemonsets(name: str) -> list[Document]:
    return [d for d in documents(name) if d["kind"] == "DaemonSet"]


def pod_of(daemonset: Document) -> Document:
    """The pod's spec."""
    found: Document = daemonset["spec"]["template"]["spec"]
    return found


def pod(name: str) -> Document:
    """The spec of the agent's pod."""
    return pod_of(one(name, "DaemonSet"))


def containers(spec: Document) -> list[Document]:
    """All containers of a pod, those that run first too."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def container(name: str, called: str) -> Document:
    """One container of the agent's pod."""
    (found,) = [c for c in containers(pod(name)) if c["name"] == called]
    return found


def mounts(spec: Document, called: str) -> dict[str, tuple[str, bool]]:
    """What a container of a pod has mounted: where, of which volume, and whether it may write there."""
    (found,) = [c for c in containers(spec) if c["name"] == called]
    return {m["mountPath"]: (m["name"], not m.get("readOnly", False)) for m in found.get("volumeMounts", [])}
