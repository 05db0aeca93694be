"""That deploy/manifests is what deploy/kustomize says now, and that Kubernetes knows every field of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from kilo import __version__
from kilo.cli.help import COMMANDS
from kilo.config import FLAGS
from tests.unit.deploy.rendered import (
    DEPLOY,
    MANIFESTS,
    NAMES,
    OVERLAYS,
    SPLIT,
    containers,
    daemonsets,
    documents,
    flags,
    pod_of,
)

VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest that is supported, and the newest that is known."""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_overlay_is_rendered() -> None:
    assert {p.name for p in OVERLAYS.iterdir()} == {p.stem for p in MANIFESTS.glob("*.yaml")} == set(NAMES)


def test_nothing_was_changed_without_rendering_it_again() -> None:
    """If this fails: run deploy/render. It needs kubectl, which is why this test does without."""
    lines = (MANIFESTS / "SHA256SUMS").read_text().splitlines()
    noted = {path: sum_ for sum_, path in (line.split("  ") for line in lines)}
    sources = [*(DEPLOY / "kustomize").rglob("*.yaml"), *MANIFESTS.glob("*.yaml")]
    assert {str(p.relative_to(DEPLOY)): digest(p) for p in sources} == noted


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_kubernetes_knows_every_field(name: str, version: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_refuse_what_is_wrong() -> None:
    """So that the test above is known to test something."""
    (daemonset,) = daemonsets(SPLIT[0])
    wrong = yaml.safe_load(yaml.safe_dump(daemonset))
    wrong["spec"]["template"]["spec"]["hostNetworks"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_image_has_this_version(name: str) -> None:
    for daemonset in daemonsets(name):
        assert {c["image"] for c in containers(pod_of(daemonset))} == {f"kilo:{__version__}"}


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_is_one_of_kg(name: str) -> None:
    """The agent reads the variables that it knows, so one that is misspelt would do nothing."""
    known = {flag.variable: flag for flag in FLAGS}
    given = dict(flags(name))
    for daemonset in daemonsets(name):
        for container in containers(pod_of(daemonset)):
            given |= {e["name"]: e.get("value", "") for e in container.get("env", []) if "KILO_" in e["name"]}
    assert given.keys() <= known.keys()
    for variable, text in given.items():
        if text and "$(" not in text:
            known[variable].parse(text)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "uninstall"])
def test_a_pod_that_ends_leaves_the_data_plane(name: str) -> None:
    assert flags(name)["KILO_CLEAN_UP"] == "false"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_kg_has_the_flags_of_the_agent(name: str) -> None:
    """Also the one that cleans up: with another --interface it would clean up nothing."""
    for daemonset in daemonsets(name):
        for container in containers(pod_of(daemonset)):
            if container["command"][0] == "kg":
                (given,) = container["envFrom"]
                assert re.fullmatch(r"kilo-\w+", given["configMapRef"]["name"])


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_one_of_kg(name: str) -> None:
    for daemonset in daemonsets(name):
        for container in containers(pod_of(daemonset)):
            program, *words = container["command"]
            assert program != "kg" or words == [] or words[0] in COMMANDS


def test_nothing_needs_a_shell() -> None:
    for name in NAMES:
        for daemonset in daemonsets(name):
            for container in containers(pod_of(daemonset)):
                words = [*container["command"], *container.get("args", [])]
                assert not {"sh", "bash", "/bin/sh", "/bin/bash", "-c"} & set(words)
