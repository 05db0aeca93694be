"""The rendered manifests against kubectl's own kustomize. Collected where there is a kubectl."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.unit.deploy.rendered import DEPLOY, NAMES, OVERLAYS, ROOT, Document, documents, pod_of


def render(path: Path) -> list[Document]:
    """What kubectl makes of a kustomization; it must not complain."""
    done = subprocess.run(
        ["kubectl", "kustomize", path], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def overlay(folder: Path, content: dict[str, Any]) -> tuple[Document, dict[str, str]]:
    """The agent's pod, and its flags, of an overlay of an operator's."""
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    made = render(folder)
    for document in made:
        kubernetes_validate.validate(document, "1.30", strict=True)
    (daemonset,) = [d for d in made if d["kind"] == "DaemonSet" and d["metadata"]["name"] == "kilo"]
    (flags,) = [d["data"] for d in made if d["kind"] == "ConfigMap"]
    return pod_of(daemonset), flags


@pytest.mark.parametrize("name", NAMES)
def test_kustomize_renders_what_is_there(name: str) -> None:
    def order(document: Document) -> str:
        return str(yaml.safe_dump(document))

    assert sorted(render(OVERLAYS / name), key=order) == sorted(documents(name), key=order)


def test_the_overlay_that_the_page_shows_works(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    here = os.path.relpath(DEPLOY, tmp_path)
    pod, flags = overlay(tmp_path, yaml.safe_load(shown.replace("kilo/deploy", here)))
    assert {c["image"] for c in pod["containers"]} == {"REGISTRY/kilo:0.1.0"}
    assert flags["KILO_MESH_GRANULARITY"] == "full"
    assert flags["KILO_CLEAN_UP"] == "false"
    assert flags["KILO_FIREWALL"] == "nftables"


@pytest.mark.parametrize("shape", ["single", "split"])
def test_with_nftables_nobody_has_raw_sockets(tmp_path: Path, shape: str) -> None:
    here = os.path.relpath(DEPLOY / "kustomize", tmp_path)
    pod, flags = overlay(
        tmp_path,
        {
            "resources": [f"{here}/overlays/k3s-{shape}"],
            "components": [f"{here}/components/nftables"],
        },
    )
    added = {c["name"]: c["securityContext"]["capabilities"].get("add", []) for c in pod["containers"]}
    assert flags["KILO_FIREWALL"] == "nftables"
    assert added["netctl" if shape == "split" else "kilo"][0] == "NET_ADMIN"
    assert not any("NET_RAW" in names for names in added.values())


@pytest.mark.parametrize("shape", ["single", "split"])
def test_components_can_be_combined(tmp_path: Path, shape: str) -> None:
    """k3s with its own flannel, on kernels without WireGuard."""
    here = os.path.relpath(DEPLOY / "kustomize", tmp_path)
    names = ("k3s", "flannel", "userspace", "image")
    pod, flags = overlay(
        tmp_path,
        {
            "resources": [f"{here}/{shape}"],
            "components": [f"{here}/components/{name}" for name in names],
        },
    )
    assert flags["KILO_COMPATIBILITY"] == "flannel"
    assert flags["KILO_CREATE_INTERFACE"] == "false"
    environments = {c["name"]: {e["name"]: e.get("value") for e in c["env"]} for c in pod["containers"]}
    speaks, plans = ("kilo", "kilo") if shape == "single" else ("watcher", "mesh")
    assert environments[speaks]["KUBERNETES_SERVICE_HOST"] == "127.0.0.1"
    assert environments[plans]["KILO_INTERNAL_CIDR"] == "$(NODE_IP)/32"
    order = list(environments[plans])
    assert order.index("NODE_IP") < order.index("KILO_INTERNAL_CIDR"), "it is defined before it is used"
