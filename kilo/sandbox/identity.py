"""User, groups and capabilities: what a process is, and what that lets it do.

The order matters: what it takes to give something up is given up last. Called by kilo.sandbox.entry.
Sources: capabilities(7), prctl(2), credentials(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from kilo.sandbox import libc
from kilo.sandbox.profile import Profile, Refusals
from kilo.sandbox.status import CAPABILITIES, mask_of, names_of, read_status

PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_READ, PR_CAPBSET_DROP = 4, 8, 23, 24
PR_GET_SECUREBITS, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 27, 28, 38, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR = 2, 4
SECURE_BITS = 0b0000_0011 | 0b0010_0000 | 0b1100_0000
"""NOROOT: user 0 gets no capabilities for being user 0, when it starts a program; KEEP_CAPS is off; no
ambient ones are raised; and the three are locked."""
_SETPCAP = 1 << CAPABILITIES.index("SETPCAP")
_LAST = Path("/proc/sys/kernel/cap_last_cap")


_TO_CHANGE = ("CHOWN", "KILL", "SETGID", "SETUID")
"""What it takes to give a process another user, give that its directories, and still end it."""


def lacking_for(profile: Profile) -> tuple[str, ...]:
    """The capabilities that are missing to give this process the user and groups of ``profile``. Raises
    OSError where /proc is not there."""
    mine = read_status()
    wanted = {profile.uid}, {profile.gid}, set(profile.groups)
    if wanted == (set(mine.uids), set(mine.gids), set(mine.groups)):
        return ()
    return tuple(name for name in _TO_CHANGE if name not in mine.permitted)


def become(uid: int, profile: Profile, refused: Refusals) -> None:
    """Be the user ``uid``, and give up all but what ``profile`` says. Raises OSError only where /proc is
    not there, without which nobody could say what this process is."""
    mine = read_status()
    wanted = mask_of(profile.capabilities)
    _bound(wanted, refused)
    _groups(profile, refused)
    _user(uid, mine.uids, refused)
    _capabilities(profile, wanted, refused)


def no_more_privileges(refused: Refusals) -> None:
    """No program that is started gets more than this process has, and no other of this user looks into it."""
    for name, option, value in (
        ("no_new_privs", PR_SET_NO_NEW_PRIVS, 1),
        ("not dumpable", PR_SET_DUMPABLE, 0),
    ):
        try:
            libc.prctl(option, value)
        except OSError as e:
            refused.add(name, e)


def _bound(wanted: int, refused: Refusals) -> None:
    """Take what is not wanted out of the bounding set."""
    for number in range(_last_capability() + 1):
        try:
            if not wanted >> number & 1 and libc.prctl(PR_CAPBSET_READ, number):
                libc.prctl(PR_CAPBSET_DROP, number)
        except OSError as e:
            refused.add("bounding set", e)


def _last_capability() -> int:
    try:
        return int(_LAST.read_text())
    except (OSError, ValueError):
        return len(CAPABILITIES) - 1


def _groups(profile: Profile, refused: Refusals) -> None:
    try:
        if set(os.getgroups()) != set(profile.groups):
            os.setgroups(profile.groups)
    except OSError as e:
        refused.add("groups", e)
    try:
        if os.getresgid() != (profile.gid,) * 3:
            os.setresgid(profile.gid, profile.gid, profile.gid)
    except OSError as e:
        refused.add("group", e)


def _user(uid: int, mine: tuple[int, ...], refused: Refusals) -> None:
    if set(mine) == {uid}:
        return
    with contextlib.suppress(
        OSError
    ):  # locked by who started us: then no capability is kept, and that is said
        libc.prctl(PR_SET_KEEPCAPS, 1)
    try:
        os.setresuid(uid, uid, uid)
    except OSError as e:
        refused.add("user", e)
    with contextlib.suppress(OSError):
        libc.prctl(PR_SET_KEEPCAPS, 0)


def _capabilities(profile: Profile, wanted: int, refused: Refusals) -> None:
    """Down to ``wanted``; SETPCAP, where there is any, stays for as long as it takes to lock them."""
    have = _permitted()
    if missing := wanted & ~have:
        refused.add("capabilities", f"{' '.join(names_of(missing))} cannot be given", errno.EPERM)
    kept = wanted & have
    passed_on = mask_of(profile.ambient) & kept
    with_key = kept | have & _SETPCAP
    try:
        libc.prctl(PR_CAP_AMBIENT, _AMBIENT_CLEAR)
        libc.capset(with_key, with_key, passed_on)
        for name in names_of(passed_on):
            libc.prctl(PR_CAP_AMBIENT, _AMBIENT_RAISE, CAPABILITIES.index(name))
    except OSError as e:
        refused.add("ambient capabilities", e)
    try:
        if libc.prctl(PR_GET_SECUREBITS) & SECURE_BITS != SECURE_BITS:
            libc.prctl(PR_SET_SECUREBITS, SECURE_BITS)
    except OSError as e:
        if read_status().bounding:  # else there is nothing that user 0 could get
            refused.add("securebits", e)
    try:
        libc.capset(kept, kept, passed_on)
    except OSError as e:
        refused.add("capabilities", e)


def _permitted() -> int:
    """Of this process; also of capabilities that have no name here."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as f:
        return next(int(line.split()[1], 16) for line in f if line.startswith("CapPrm:"))
