"""The Containerfile, read as a builder would: there is no container engine here to build it with."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pytest

from tests.unit.deploy.rendered import DEPLOY, NAMES, ROOT, containers, daemonsets, pod_of

INSTALLED = {
    "kg": "pip",
    "python3": "venv",
    "install": "coreutils",
    "sleep": "coreutils",
    "test": "coreutils",
}
"""Programs of the manifests, and what brings them: Debian's essential packages, or the agent's own."""


@dataclass
class Stage:
    """A stage: its base, its name, and its instructions with their words."""

    base: str
    name: str
    instructions: list[tuple[str, str]]

    def all(self, kind: str) -> list[str]:
        return [rest for found, rest in self.instructions if found == kind]


@lru_cache
def stages() -> tuple[Stage, ...]:
    """The stages of the file, with arguments put in."""
    text = (DEPLOY / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for line in joined:
        kind, _, rest = line.partition(" ")
        rest = re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m.group(1), m.group(0)), rest.strip())
        if kind == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif kind == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base, name, []))
        else:
            found[-1].instructions.append((kind, rest))
    return tuple(found)


def copies(stage: Stage) -> list[tuple[str, list[str], str]]:
    """From which stage ("" for the checkout), what, and where to."""
    found = []
    for rest in stage.all("COPY"):
        words = shlex.split(rest)
        options = [w for w in words if w.startswith("--")]
        paths = [w for w in words if not w.startswith("--")]
        found.append((options[0].removeprefix("--from=") if options else "", paths[:-1], paths[-1]))
    return found


def files() -> set[str]:
    """What the last stage is given by name."""
    given = set()
    for _, sources, target in copies(stages()[-1]):
        for source in sources:
            given.add(target + PurePosixPath(source).name if target.endswith("/") else target)
    return given


def test_the_file_is_what_this_reads() -> None:
    kinds = {kind for stage in stages() for kind, _ in stage.instructions}
    assert kinds == {"RUN", "COPY", "ENV", "USER", "ENTRYPOINT"}, "nothing is fetched by ADD"


def test_every_base_has_a_tag_that_is_not_latest() -> None:
    for stage in stages():
        assert re.fullmatch(r"docker\.io/library/debian:[a-z]+-slim", stage.base)


def test_what_is_copied_is_there() -> None:
    known: set[str] = set()
    for stage in stages():
        for origin, sources, _ in copies(stage):
            if origin:
                assert origin in known
            else:
                assert all((ROOT / source).exists() for source in sources), sources
        known.add(stage.name)


def test_the_ignore_file_lets_through_what_is_copied() -> None:
    lines = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        s.rstrip("/") for stage in stages() for o, sources, _ in copies(stage) if not o for s in sources
    }
    assert "*" in lines
    assert allowed == copied


def test_programs_of_other_stages_are_on_a_debian_machine_where_they_are_taken_from() -> None:
    """This is one, of the release that the image is made of or newer, with the same packages."""
    for origin, sources, _ in copies(stages()[-1]):
        if origin == "programs":
            assert [s for s in sources if not Path(s).is_file()] == []


def test_nobody_needs_a_shell_and_nobody_is_root_by_default() -> None:
    last = stages()[-1]
    (entry,) = last.all("ENTRYPOINT")
    assert json.loads(entry) == ["/opt/kilo/bin/kg"], "in exec form"
    (user,) = last.all("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "as numbers, so that a kubelet can tell it is not root"


def test_no_compiler_and_no_installer_is_left() -> None:
    first, _, last = stages()
    assert not {"gcc", "python3-dev", "python3-venv", "python3-pip"} & set(" ".join(last.all("RUN")).split())
    assert "pip uninstall -y pip setuptools" in first.all("RUN")[-1]


def test_both_variants_of_iptables_are_there() -> None:
    """Debian has them in one package, with the libraries that netctl writes legacy tables with."""
    (run,) = stages()[-1].all("RUN")
    assert {"iptables", "python3", "graphviz", "ca-certificates"} <= set(run.split())


@pytest.mark.parametrize("name", NAMES)
def test_every_program_that_a_manifest_runs_is_in_the_image(name: str) -> None:
    in_path = {PurePosixPath(path).name for path in files() if path.startswith("/usr/bin/")}
    for daemonset in daemonsets(name):
        for container in containers(pod_of(daemonset)):
            probes = [container.get(kind, {}).get("exec") for kind in ("livenessProbe", "readinessProbe")]
            for command in [container["command"], *(probe["command"] for probe in probes if probe)]:
                assert command[0] in in_path | INSTALLED.keys()
                given = [word for word in command[1:] if word.startswith("/opt/cni/bin/")]
                assert set(given) <= files()


def pins(path: Path) -> dict[str, set[str]]:
    """The hashes of each pinned package, by ``name==version``."""
    found: dict[str, set[str]] = {}
    pin = ""
    for line in path.read_text().splitlines():
        words = line.rstrip("\\").split()
        if line[:1].isalnum():
            pin = words[0]
            found[pin] = set()
        else:
            found[pin] |= {word for word in words if word.startswith("--hash=")}
    return found


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_what_pip_installs_is_pinned_by_hashes_as_in_the_tests(name: str) -> None:
    image, everything = pins(DEPLOY / name), pins(ROOT / "requirements.lock")
    assert {pin: everything.get(pin) for pin in image} == image, "make lock makes all"
    assert image
    assert all(image.values())
    runs = [part for run in stages()[0].all("RUN") for part in run.split("&&") if "/pip " in part]
    for run in runs:
        offline = "--no-index" in run or "--no-build-isolation" in run or "uninstall" in run
        assert offline or "--require-hashes" in run, "nothing that is not pinned comes from a registry"
    assert any(f"-r /src/deploy/{name}" in run for run in runs)


def test_the_libraries_are_those_that_the_agent_needs() -> None:
    image = pins(DEPLOY / "requirements.lock")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {pin.partition("==")[0] for pin in image}
    assert {re.split(r"[<>=]", each)[0] for each in declared} <= names
    assert "pytest" not in names
