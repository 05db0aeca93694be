"""The profiles beside the table of DESIGN.md and the deployment's manifests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kilo.bus import WORKERS
from kilo.config import Config
from kilo.model.workers import IDS
from kilo.sandbox import Access, Profile, profiles
from kilo.sandbox.given import _is_wide
from kilo.sandbox.profile import with_identity_as_it_is, without_files
from kilo.sandbox.profiles import HEARS, closed_code, profile_for
from tests.unit.deploy.test_least_privilege import HEARS as IN_THE_MANIFESTS

CONFIG = Config(run_dir="/run/kilo")
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
CHANGE = Access.WRITE | Access.MAKE
OWN = {name: f"/run/kilo/{name}" for name in WORKERS}


def profile(worker: str, config: Config = CONFIG) -> Profile:
    return profile_for(worker, config, ENVIRONMENT)


def with_right(found: Profile, access: Access) -> set[str]:
    return {rule.path for rule in found.rules if rule.access & access}


@pytest.mark.parametrize(
    "worker, more",
    [
        ("watcher", set()),
        ("mesh", set()),
        ("netctl", {"/var/lib/kilo", "/run/wireguard", "/run/xtables.lock", "/dev/net/tun"}),
        ("cni", {"/etc/cni/net.d"}),
        ("health", set()),
    ],
)
def test_what_each_may_write(worker: str, more: set[str]) -> None:
    assert with_right(profile(worker), CHANGE) == {OWN[worker], "/dev/null"} | more


@pytest.mark.parametrize("worker", WORKERS)
def test_identities_and_capabilities(worker: str) -> None:
    found = profile(worker)
    privileged = worker == "netctl"
    assert found.capabilities == (("NET_ADMIN", "NET_RAW") if privileged else ())
    assert found.ambient == (("NET_ADMIN",) if privileged else ())
    assert found.uid == (0 if worker in ("netctl", "cni") else IDS[worker])
    assert set(found.groups) == {IDS[name] for name in (worker, *HEARS[worker])}
    assert (found.home, found.home_group) == (OWN[worker], IDS[worker])


def test_who_hears_whom_is_as_deployed() -> None:
    assert {name: set(heard) for name, heard in HEARS.items()} == IN_THE_MANIFESTS


def test_programs_and_ports() -> None:
    assert {w: with_right(profile(w), Access.EXECUTE) for w in ("watcher", "mesh", "cni")} == {
        "watcher": set(),
        "mesh": set(),
        "cni": set(),
    }
    assert "/usr/bin/dot" in with_right(profile("health"), Access.EXECUTE)
    assert "/usr/bin/wireguard-go" in with_right(profile("netctl"), Access.EXECUTE)
    assert {w: (profile(w).bind, profile(w).connect) for w in WORKERS} == {
        "watcher": ((), None),
        "mesh": ((), ()),
        "netctl": ((), ()),
        "cni": ((), ()),
        "health": ((1107,), ()),
    }


@pytest.mark.parametrize("worker", WORKERS)
def test_who_starts_programs_may_make_processes(worker: str) -> None:
    """wireguard-go, dot, and the watcher's credential plugins, which a kubeconfig may name later."""
    assert profile(worker).processes == (worker in ("netctl", "health", "watcher"))
    assert without_files(profile(worker)).processes == profile(worker).processes


@pytest.mark.parametrize("worker", WORKERS)
def test_nobody_reads_the_root_or_homes_and_only_netctl_the_key(worker: str) -> None:
    paths = with_right(profile(worker), Access.READ)
    closed = {"/", "/root", "/home", "/run", "/var", "/var/lib", os.path.expanduser("~")}
    if worker != "netctl":
        closed |= {"/proc", "/var/lib/kilo"}
    assert not paths & closed


def test_the_token_is_the_watchers_alone() -> None:
    token = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert {w for w in WORKERS if token in with_right(profile(w), Access.READ)} == {"watcher"}


def test_a_directory_on_the_path_is_not_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", "/", *sys.path])
    paths = with_right(profile("mesh"), Access.READ)
    assert str(tmp_path) not in paths
    assert "/" not in paths


def test_a_directory_for_each_package_is_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "msgspec-1.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert str(tmp_path) in with_right(profile("mesh"), Access.READ)


@pytest.fixture
def vendored(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of modules and packages that were not installed, and that Python was given."""
    folder = place / "vendor"
    (folder / "package").mkdir(parents=True)
    (folder / "package/__init__.py").touch()
    (folder / "__pycache__").mkdir(mode=0o700)
    monkeypatch.setattr(sys, "path", ["/nothing", str(folder), *sys.path])
    return folder


def is_code(folder: Path) -> bool:
    """Whether workers may read it; if not, it is told."""
    readable = {str(folder) in with_right(profile(worker), Access.READ) for worker in WORKERS}
    assert len(readable) == 1
    assert (str(folder) in closed_code(CONFIG)) != (True in readable)
    return True in readable


def test_a_directory_of_one_s_own_is_code_if_everybody_may_read_it(vendored: Path) -> None:
    assert is_code(vendored)
    assert str(vendored) in profile("mesh").reach


@pytest.mark.parametrize("mode", [0o750, 0o757, 0o1777, 0o754])
def test_it_is_not_if_some_may_not_read_it_or_all_may_write_it(vendored: Path, mode: int) -> None:
    vendored.chmod(mode)
    assert not is_code(vendored)


def test_it_is_not_if_nobody_else_can_come_to_it(vendored: Path) -> None:
    vendored.parent.chmod(0o700)
    assert not is_code(vendored)
    assert not any(path.startswith(str(vendored)) for path in profile("mesh").reach), "nobody becomes root"


@pytest.mark.parametrize("name", [".env", "module.py", "keys"])
def test_it_is_not_if_there_is_something_in_it_that_is_not_for_all(vendored: Path, name: str) -> None:
    (vendored / name).touch(0o600)
    assert not is_code(vendored)


def test_it_is_not_if_it_is_a_home_or_around_the_agent_s_own_files(
    vendored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(vendored))
    assert not is_code(vendored)
    monkeypatch.setenv("HOME", str(vendored.parent))
    assert is_code(vendored)
    for config in (
        Config(state_dir=f"{vendored}/state"),
        Config(run_dir=f"{vendored}/run"),
        Config(kubeconfig=f"{vendored}/package/config"),
    ):
        assert str(vendored) not in with_right(profile("cni", config), Access.READ)
        assert str(vendored) in closed_code(config)


@pytest.mark.parametrize("path", ["/", "/srv", "/home/somebody", "/etc/app", "/run/app", "/sys/kernel"])
def test_what_is_never_opened_whatever_is_in_it(path: str) -> None:
    assert _is_wide(path, ())


def test_a_directory_without_code_is_neither_opened_nor_told(vendored: Path) -> None:
    (vendored / "package/__init__.py").unlink()
    assert str(vendored) not in with_right(profile("mesh"), Access.READ)
    assert closed_code(CONFIG) == ()


def test_an_archive_is_code(vendored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = vendored / "code.zip"
    archive.touch(0o644)
    monkeypatch.setattr(sys, "path", ["", str(archive), *sys.path])
    assert is_code(archive)
    archive.chmod(0o600)
    assert not is_code(archive)


def test_a_checkout_that_is_closed_is_not_told(vendored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's own package in it is open to workers, and that is what it is there for."""
    vendored.chmod(0o700)
    monkeypatch.setattr(profiles, "__file__", str(vendored / "kilo/sandbox/profiles.py"))
    assert str(vendored / "kilo") in with_right(profile("mesh"), Access.READ)
    assert closed_code(CONFIG) == ()


@pytest.mark.parametrize("sandbox", ["capabilities", "off"])
def test_nothing_is_closed_where_files_are_not_looked_at(vendored: Path, sandbox: str) -> None:
    vendored.chmod(0o700)
    assert closed_code(Config(sandbox=sandbox)) == ()


def test_a_kubeconfig_opens_the_directories_of_its_files(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("users: [{name: a, user: {tokenFile: /srv/token}}]")
    found = profile("watcher", Config(kubeconfig=str(path)))
    assert {str(tmp_path), "/srv"} <= with_right(found, Access.READ)
    assert {str(path), "/srv/token"} <= set(found.reach)
    assert not with_right(found, Access.EXECUTE)


def test_with_a_credential_plugin_the_watcher_keeps_user_and_files(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("users: [{name: a, user: {exec: {command: get-token}}}]")
    found = profile("watcher", Config(kubeconfig=str(path)))
    assert (found.uid, found.landlock, found.rules) == (os.geteuid(), False, ())
    assert found.capabilities == ()
    assert "get-token" in found.spared


def test_a_program_that_is_not_there_is_awaited_where_it_may_come(tmp_path: Path) -> None:
    found = profile_for("netctl", CONFIG, {"PATH": f"{tmp_path}:relative:/nowhere"})
    awaited = {rule.path for rule in found.rules if rule.awaited}
    assert awaited == {f"{tmp_path}/wireguard-go", "/nowhere/wireguard-go"}
    assert any("ld-linux" in path for path in with_right(found, Access.EXECUTE)), "it may need the loader"
    assert not any(rule.awaited for rule in profile("netctl").rules)


def test_without_cni_nothing_is_written() -> None:
    assert with_right(profile("cni", Config(cni=False, run_dir="/run/kilo")), CHANGE) == {
        OWN["cni"],
        "/dev/null",
    }


def test_alone_a_worker_stays_who_it_is() -> None:
    found = with_identity_as_it_is(profile("netctl"))
    assert (found.uid, found.gid) == (os.geteuid(), os.getegid())
    assert found.capabilities == ("NET_ADMIN", "NET_RAW")
    assert [rule.path for rule in found.rules] == [rule.path for rule in profile("netctl").rules]
    assert not any(rule.owner for rule in found.rules)
