"""Landlock: which paths and TCP ports a process, and whatever it starts, may use from now on.

Nothing here can be taken back, and each call can only restrict further. A system call that the kernel
has in another version (no TCP before 4, no scopes before 6) leaves those parts out, by name.
Source: https://docs.kernel.org/userspace-api/landlock.html. Called by kilo.sandbox.entry.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from kilo.sandbox import libc
from kilo.sandbox.profile import Access, Profile, Refusals, Rule

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls: the numbers are the same on all architectures."""
NEWEST = 7
"""The version whose rights are known here; a newer kernel is asked for no more."""
PROC = "/proc/"
"""A rule for what is in there holds for as long as the file is open: procfs makes another inode of it when
memory was short, which no rule is for. So descriptors of these are kept, for the process's whole life."""
_VERSION = 1
_PATH_BENEATH, _NET_PORT = 1, 2
_BIND_TCP, _CONNECT_TCP = 1, 2
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_RIGHTS = {
    Access.LIST: READ_DIR,
    Access.READ: READ_DIR | READ_FILE,
    Access.EXECUTE: EXECUTE,
    Access.WRITE: WRITE_FILE | TRUNCATE,
    Access.MAKE: MAKE_DIR | MAKE_REG | MAKE_SOCK | REMOVE_DIR | REMOVE_FILE,
    Access.DEVICE: IOCTL_DEV,
}


def version() -> int:
    """The newest version of the interface that the kernel has. Raises OSError if it has none."""
    return libc.syscall(CREATE_RULESET, None, 0, _VERSION)


def handled(abi: int) -> int:
    """All rights to files that version ``abi`` knows: what no rule allows is refused."""
    known = EXECUTE | WRITE_FILE | READ_FILE | READ_DIR | REMOVE_DIR | REMOVE_FILE
    known |= MAKE_CHAR | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK | MAKE_SYM
    return known | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (IOCTL_DEV if abi >= 5 else 0)


def rights(access: Access, directory: bool) -> int:
    """The kernel's bits; a file has no use for those of directories, and the kernel refuses them."""
    bits = 0
    for each, mask in _RIGHTS.items():
        if each in access:
            bits |= mask
    return bits if directory else bits & _OF_FILES


def restrict(profile: Profile, refused: Refusals) -> int:
    """Restrict this thread, and those it starts, to ``profile``; the version in use, 0 if there is none.

    The process must have no_new_privs. Raises nothing.
    """
    try:
        abi = min(version(), NEWEST)
        ruleset = _ruleset(profile, abi)
    except OSError as e:
        refused.add("landlock", e)
        return 0
    try:
        for rule in profile.rules:
            _allow(ruleset, rule, abi)
        if abi >= 4:
            _allow_ports(ruleset, profile)
        libc.syscall(RESTRICT_SELF, ruleset, 0)
    except OSError as e:
        refused.add("landlock", e)
        return 0
    finally:
        os.close(ruleset)
    if abi < 4 and (profile.bind is not None or profile.connect is not None):
        refused.add("landlock for TCP", f"the kernel has version {abi}, and 4 is needed", errno.EOPNOTSUPP)
    if abi < 6 and (profile.scope_sockets or profile.scope_signals):
        refused.add("landlock's scopes", f"the kernel has version {abi}, and 6 is needed", errno.EOPNOTSUPP)
    return abi


def _ruleset(profile: Profile, abi: int) -> int:
    """A descriptor. Its attributes are as long as the version knows them."""
    network = (_BIND_TCP if profile.bind is not None else 0) | (
        _CONNECT_TCP if profile.connect is not None else 0
    )
    scopes = (_ABSTRACT_SOCKETS if profile.scope_sockets else 0) | (_SIGNALS if profile.scope_signals else 0)
    words = [handled(abi)]
    if abi >= 4:
        words.append(network)
    if abi >= 6:
        words.append(scopes)
    attributes = struct.pack(f"={len(words)}Q", *words)
    return libc.syscall(CREATE_RULESET, libc.memory_of(attributes), len(attributes), 0)


def _allow(ruleset: int, rule: Rule, abi: int) -> None:
    """Raises OSError for what is not the path's fault."""
    try:
        fd = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it is not there, or not for this user
    try:
        allowed = rights(rule.access, stat.S_ISDIR(os.fstat(fd).st_mode)) & handled(abi)
        if allowed:
            beneath = struct.pack("=Qi", allowed, fd)
            libc.syscall(ADD_RULE, ruleset, _PATH_BENEATH, libc.memory_of(beneath), 0)
    finally:
        if not rule.path.startswith(PROC):
            os.close(fd)


def _allow_ports(ruleset: int, profile: Profile) -> None:
    for right, ports in ((_BIND_TCP, profile.bind), (_CONNECT_TCP, profile.connect)):
        for port in ports or ():
            libc.syscall(ADD_RULE, ruleset, _NET_PORT, libc.memory_of(struct.pack("=QQ", right, port)), 0)


def make_missing(rules: tuple[Rule, ...]) -> None:
    """Make the files and directories that a rule wants to be there. What cannot be made is left out."""
    for rule in rules:
        try:
            if rule.directory:
                _make_directory(rule.path, rule.directory)
            elif rule.file:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(rule.path, flags, rule.file))
        except OSError:
            continue  # it is there already, mostly; else the worker meets the same error, and says so


def _make_directory(path: str, mode: int) -> None:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    os.mkdir(path, mode)
