"""Processes that enter for real, on this kernel: what they can still do, and what is said of it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilo.model.workers import WORKERS
from kilo.sandbox import Result, read_status
from kilo.sandbox.profile import Refusal
from kilo.sandbox.seccomp import DENIED
from tests.feeding import eventually
from tests.integration.sandbox import deeds
from tests.integration.sandbox.conftest import command, inside

NATIVE = sorted(name for name, numbers in DENIED.items() if numbers[deeds.MACHINE.column] >= 0)


@pytest.fixture
def own(place: Path) -> str:
    """The directory that the process may write."""
    path = place / "own"
    path.mkdir(mode=0o755)
    os.chown(path, deeds.UID, deeds.UID)
    return str(path)


def refused(found: dict[str, Any]) -> dict[str, str]:
    return {each["what"]: errno.errorcode.get(each["number"], "") for each in found["refused"]}


def test_what_it_ended_up_with_can_be_read_by_anybody(own: str) -> None:
    with subprocess.Popen(command("enters_and_waits", own), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        result = msgspec.json.decode(process.stdout.readline(), type=Result)
        seen = read_status(process.pid)
        process.kill()  # by who is outside: that is not restricted
    assert process.returncode == -9
    assert seen == result.status
    assert result.refused == ()
    assert result.landlock >= 1
    assert (seen.uid, set(seen.uids), set(seen.gids)) == (deeds.UID, {deeds.UID}, {deeds.UID})
    assert seen.groups == (deeds.GROUP, deeds.UID)
    assert not (seen.permitted or seen.effective or seen.inheritable or seen.ambient or seen.bounding)
    assert (seen.no_new_privs, seen.seccomp, seen.threads) == (True, 2, 1)


def test_what_is_forbidden_fails(own: str, place: Path) -> None:
    secret = place / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = inside(deeds.tries_what_is_forbidden, own, port, str(secret))
    assert found == {
        "list the root": "EACCES",
        "read outside": "EACCES",
        "read another's file": "EACCES",
        "write outside": "EACCES",
        "make a directory outside": "EACCES",
        "make a device": "EPERM",
        "run a program": "EACCES",
        "connect": "EACCES",
        "bind": "EACCES",
        "signal": "EPERM",
        "become root": "EPERM",
        "become root's group": "EPERM",
        "join a group": "EPERM",
        "raise a capability": "EPERM",
        "be a parent with a namespace": "EPERM",
        "clone3": "ENOSYS",
    }


def test_what_is_its_own_works(own: str) -> None:
    assert set(inside(deeds.tries_what_is_its_own, own).values()) == {"ok"}


def test_landlock_alone_keeps_root_from_roots_files_and_processes(own: str, place: Path) -> None:
    (place / "secret").write_text("x")
    found = inside(deeds.roots_files, own, str(place / "secret"))
    assert found.pop("own") == "ok"
    assert found.pop("signal") == "EPERM"
    assert set(found.values()) == {"EACCES"}


def test_the_filter_alone_refuses_these_calls_to_one_with_all_capabilities() -> None:
    assert inside(deeds.filters_alone, NATIVE) == dict.fromkeys(NATIVE, "EPERM")


def test_without_processes_none_is_made_and_threads_are(own: str) -> None:
    found = inside(deeds.tries_to_make_processes, own, False)
    assert (found.pop("thread"), found.pop("thread after that")) == ("ok", "ok")
    assert found.pop("clone3") == "ENOSYS"
    assert {"fork of the library", "clone", "posix_spawn", "subprocess", "execve", "execveat"} < set(found)
    assert set(found.values()) == {"EPERM"}


def test_with_processes_the_same_are_made(own: str) -> None:
    found = inside(deeds.tries_to_make_processes, own, True)
    assert found.pop("clone3") == "ENOSYS"
    assert (found.pop("execve"), found.pop("execveat")) == ("ENOENT", "ENOENT")
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize("level, refuses", [("full", True), ("capabilities", True), ("off", False)])
@pytest.mark.parametrize("worker", WORKERS)
def test_who_can_leave_a_process_behind(own: str, worker: str, level: str, refuses: bool) -> None:
    needs_none = worker in ("mesh", "cni")
    found = inside(deeds.forks_as, worker, own, level)
    assert found == {"fork": "EPERM" if needs_none and refuses else "ok"}


def test_subprocess_raises_what_it_raises_where_a_program_may_not_be_started(own: str) -> None:
    name, text = inside(deeds.subprocess_says, own)
    assert (name, "Operation not permitted" in text) == ("PermissionError", True)


def test_the_numbers_of_another_architecture_kill(own: str) -> None:
    assert inside(deeds.follows_another_architecture, own) == 31


@pytest.mark.parametrize(
    "uid, ambient, effective", [(deeds.UID, [], 0), (deeds.UID, ["NET_ADMIN"], 1 << 12), (0, [], 0)]
)
def test_a_program_that_it_starts_has_no_more(own: str, uid: int, ambient: list[str], effective: int) -> None:
    more = {"uid": uid, "capabilities": ["NET_ADMIN", "NET_RAW"], "ambient": ambient}
    found = inside(deeds.runs_a_program, own, more)
    assert {int(found[f"Cap{which}"], 16) for which in ("Prm", "Eff", "Amb", "Inh")} == {effective}
    assert int(found["CapBnd"], 16) == 1 << 12 | 1 << 13
    assert (found["NoNewPrivs"], found["Seccomp"], found["Root"]) == ("1", "2", "closed")


def test_only_the_descriptors_named_stay(own: str) -> None:
    before, after, kept = inside(deeds.closes_descriptors, own)
    assert len(before) > len(after)
    assert set(after) == {0, 1, 2, *kept}


def test_rights_to_what_is_in_proc_outlive_a_shortage_of_memory(own: str) -> None:
    """The kernel then forgets a process's directory, and makes it anew, as another file, when it is asked."""
    words = command("keeps_its_rights_in_proc", own)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "looked\n"
        before = os.stat(f"/proc/{process.pid}/fd").st_ino
        os.sync()

        def forgotten() -> bool:
            """It does not forget what another process looks at in that moment."""
            Path("/proc/sys/vm/drop_caches").write_text("2")
            return os.stat(f"/proc/{process.pid}/fd").st_ino != before

        eventually(forgotten)
        process.stdin.write("\n\n")
        process.stdin.flush()
        assert process.stdout.read().splitlines()[-1] == "[true, true]"


def test_without_the_right_to_change_them_users_and_groups_stay_and_that_is_said(own: str) -> None:
    found = inside(deeds.has_lost, own, ["SETUID", "SETGID", "SETPCAP", "NET_ADMIN"], deeds.UID)
    assert refused(found) == {
        "bounding set": "EPERM",
        "user": "EPERM",
        "capabilities": "EPERM",
        "securebits": "EPERM",
    }
    assert "SETGID SETUID" in next(each["reason"] for each in found["refused"] if each["what"] == "user")
    status = found["status"]
    assert (status["uids"], status["effective"], status["permitted"]) == ([0] * 4, [], [])
    assert tuple(status["bounding"]) == read_status().bounding
    assert (status["no_new_privs"], status["seccomp"]) == (True, 2)
    assert found["landlock"] >= 1


def test_in_a_container_of_its_own_nothing_is_refused(own: str) -> None:
    found = inside(deeds.is_contained, own)
    assert refused(found) == {}
    assert (found["status"]["uids"], found["status"]["groups"]) == ([deeds.UID] * 4, [deeds.GROUP])
    assert found["landlock"] >= 1


@pytest.mark.parametrize(
    "calls, names",
    [
        ([deeds.MISSING_LANDLOCK], {"landlock": "ENOSYS"}),
        ([deeds.MISSING_SECCOMP], {"seccomp": "ENOSYS"}),
        ([deeds.MISSING_SECCOMP, deeds.MISSING_LANDLOCK], {"landlock": "ENOSYS", "seccomp": "ENOSYS"}),
    ],
)
def test_what_the_kernel_does_not_have_is_named_and_the_rest_applied(
    own: str, calls: list[int], names: dict[str, str]
) -> None:
    found = inside(deeds.finds_calls_missing, own, calls, False)
    assert refused(found) == names
    assert (found["landlock"] == 0) == ("landlock" in names)
    assert (found["status"]["uids"], found["status"]["bounding"]) == ([deeds.UID] * 4, [])


def test_where_all_is_required_it_raises_with_the_names(own: str) -> None:
    calls = [deeds.MISSING_SECCOMP, deeds.MISSING_LANDLOCK]
    text, status = inside(deeds.finds_calls_missing, own, calls, True)
    assert "landlock: Function not implemented (ENOSYS); seccomp: Function not implemented (ENOSYS)" in text
    assert status["uids"] == [deeds.UID] * 4  # the rest was applied
    assert isinstance(inside(deeds.finds_calls_missing, own, [], True), dict)


def test_a_thread_that_was_there_before_is_named(own: str) -> None:
    assert refused(inside(deeds.has_threads, own)) == {"threads": ""}


def test_nobody_looks_into_it_and_user_0_means_nothing(own: str) -> None:
    """NOROOT, its lock, KEEP_CAPS locked at off, NO_CAP_AMBIENT_RAISE and its lock: securebits.h."""
    assert inside(deeds.is_locked, own) == [0, 0b1110_0011]


def test_a_second_time_changes_nothing_and_refuses_nothing(own: str) -> None:
    found, works = inside(deeds.enters_twice, own)
    assert refused(found) == {}
    assert works == {"list": "ok"}


@pytest.mark.parametrize("mode, owner, uid", [(0o700, 0, 0), (0o700, 1234, 1234), (0o755, 0, deeds.UID)])
def test_a_user_that_cannot_read_what_it_must_is_not_taken(
    own: str, place: Path, mode: int, owner: int, uid: int
) -> None:
    closed = place / "home"
    closed.mkdir()
    (closed / "config").touch(0o644)
    for path in (closed, closed / "config"):
        os.chown(path, owner, owner)
    closed.chmod(mode)
    found = inside(deeds.cannot_reach, own, str(closed / "config"))
    assert found["status"]["uids"] == [uid] * 4
    assert refused(found) == ({"user": "EACCES"} if uid != deeds.UID else {})
    assert not found["status"]["permitted"]
    if uid != deeds.UID:
        assert found["refused"][0]["reason"] == f"user 11072 cannot read {closed}; runs as user {uid} instead"


def test_tcp_ports_are_those_given(own: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ports = [each.getsockname()[1] for each in (one, other)]
        found = inside(deeds.uses_ports, own, port, *ports)
    assert found == {"bind": "ok", "bind another": "EACCES", "connect": "ok", "connect to another": "EACCES"}


@pytest.mark.parametrize("scoped, outside", [(True, "EPERM"), (False, "ok")])
def test_abstract_sockets_of_others(own: str, scoped: bool, outside: str) -> None:
    name = f"kgs/{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        assert inside(deeds.calls_abstract, own, name, scoped) == {"outside": outside, "own": "ok"}


def test_a_refusal_reads_well() -> None:
    assert str(Refusal("landlock", errno.ENOSYS, "no such call")) == "landlock: no such call (ENOSYS)"
    assert str(Refusal("threads", 0, "it is 2, not 1")) == "threads: it is 2, not 1"
