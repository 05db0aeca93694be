"""What a process is to be left with, and what came of it: values, and what each is made of."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from enum import IntFlag

import msgspec

from kilo.model.host import Sandbox
from kilo.sandbox.status import Status, read_status


class Access(IntFlag):
    """What may be done to a path, and, where it is a directory, to all that is under it."""

    LIST = 1
    """List directories, and read no file."""
    READ = 2
    """Read files and list directories. Shared libraries need no more."""
    EXECUTE = 4
    """Start programs; reading them is READ."""
    WRITE = 8
    """Write to files that exist, and cut them."""
    MAKE = 16
    """Make and remove files, directories and sockets; rename within one directory."""
    DEVICE = 32
    """Ask things of a device (ioctl)."""


@dataclass(frozen=True)
class Rule:
    """A path and what may be done there. A path that is not there when the process enters is left out.

    ``directory`` or ``file``: the mode with which it is made, by the privileges there are before, if
    it is missing; 0: it is not made. ``owner``: the number of the user and group that a directory is
    given to, with that mode, if there is nothing in it but ``ours``: what others use stays whose it is. 0:
    it always does. ``awaited``: the process has to be started again once the path is there. ``watched``:
    also when another file or directory is put there.
    """

    path: str
    access: Access
    directory: int = 0
    file: int = 0
    owner: int = 0
    ours: tuple[str, ...] = ()
    awaited: bool = False
    watched: bool = True


@dataclass(frozen=True)
class Profile:
    """All that a process is to have. Capabilities are names such as ``NET_ADMIN``.

    ``home``: the directory of its own, which is given to the user it becomes and to the group
    ``home_group``, with the mode ``home_mode``. ``reach``: paths that ``uid`` must be able to read, or it
    could not do its work; where it cannot, the process has the user that can (see kilo.sandbox.reach).
    ``ambient``: those of ``capabilities`` that programs it starts are given. ``bind`` and ``connect``: the
    TCP ports for which that is allowed, None for all. ``scope_sockets``: no connections to abstract
    sockets of processes outside; ``scope_signals``: no signals to such processes. Without ``landlock``
    these and ``rules`` mean nothing. ``processes``: it may make processes and start programs; without it,
    threads alone, so nothing of it goes on once it was ended. ``named``: a file of which ``reach`` and
    ``rules`` were made, and what it named then. ``spared``: why user, groups and files stay as they are; it
    is then said that they do.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = ""
    home_group: int = 0
    home_mode: int = 0o2750
    reach: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    bind: tuple[int, ...] | None = ()
    connect: tuple[int, ...] | None = ()
    scope_sockets: bool = True
    scope_signals: bool = True
    landlock: bool = True
    processes: bool = True
    named: tuple[str, object] | None = None
    spared: str = ""


def with_identity_as_it_is(profile: Profile) -> Profile:
    """User and groups stay, and so does whose directory it is; of its capabilities it keeps no more than
    the profile has. For a worker that was started alone, as in a container of its own, and for those of a
    parent that cannot give them users of their own."""
    have = read_status()
    return replace(
        profile,
        uid=os.geteuid(),
        gid=os.getegid(),
        groups=tuple(sorted(os.getgroups())),
        home_group=os.getegid(),
        home_mode=0o755,
        rules=tuple(replace(rule, owner=0) if rule.owner else rule for rule in profile.rules),
        reach=(),
        capabilities=tuple(name for name in profile.capabilities if name in have.permitted),
        ambient=tuple(name for name in profile.ambient if name in have.permitted),
    )


def without_files(profile: Profile) -> Profile:
    """As a profile, but of user, groups and files all stays as it is: capabilities and system calls go."""
    return replace(with_identity_as_it_is(profile), rules=(), landlock=False, named=None)


class Refusal(msgspec.Struct, frozen=True):
    """A restriction that is not in place, by name. ``number``: the errno, 0 where there was none."""

    what: str
    number: int
    reason: str

    def __str__(self) -> str:
        code = errno.errorcode.get(self.number, "")
        return f"{self.what}: {self.reason}" + (f" ({code})" if code else "")


class Result(msgspec.Struct, frozen=True):
    """What a process ended up with. ``landlock``: the version of its interface that is in use, 0 for none."""

    status: Status
    landlock: int = 0
    refused: tuple[Refusal, ...] = ()


def shown(status: Status, landlock: int = 0, refused: tuple[Refusal, ...] = ()) -> Sandbox:
    """What others are told of it."""
    return Sandbox(
        uid=status.uid,
        gid=status.gids[1],
        groups=status.groups,
        capabilities=status.effective,
        no_new_privs=status.no_new_privs,
        seccomp=bool(status.seccomp),
        landlock=landlock,
        refused=tuple(map(str, refused)),
    )


class Refusals:
    """Collects what was refused, each name once, the first reason first."""

    def __init__(self) -> None:
        self._found: dict[str, Refusal] = {}

    def add(self, what: str, reason: str | OSError, number: int = 0) -> None:
        if isinstance(reason, OSError):
            number = reason.errno or 0
            reason = os.strerror(number)
        self._found.setdefault(what, Refusal(what, number, reason))

    def __contains__(self, what: str) -> bool:
        return what in self._found

    def all(self) -> tuple[Refusal, ...]:
        return tuple(self._found.values())
