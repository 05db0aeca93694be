"""A filter of system calls: those that no worker needs are refused with EPERM, as if it had not the right.

The filter is in the kernel's own classic BPF (struct sock_filter), for x86-64 and arm64: of what the tables
have, the numbers never change. What follows another architecture's numbers (32-bit programs) is killed.
Programs that a process starts keep the filter. Who needs no other process can make none. Called by
kilo.sandbox.entry.
Source: https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from kilo.sandbox import libc
from kilo.sandbox.profile import Refusals

DENIED = {
    # name: number on x86-64, on arm64; -1: it has none
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, -1),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mknod": (133, -1),
    "mknodat": (259, 33),
    "modify_ldt": (154, -1),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "uselib": (134, -1),
    "vhangup": (153, 58),
}
PROCESSES = {
    # the same, where no process may be made and no program started
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, -1),
    "vfork": (58, -1),
}
NEW_NAMESPACES = 0x7E02_0000
"""The flags of clone(2): CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID and NET; it has none for TIME."""
CLONE_THREAD = 0x1_0000
_CLONE3 = 435
_SET_MODE_FILTER, _TSYNC = 1, 1
_ALLOW, _KILL, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Where struct seccomp_data has them; of the argument, the lower half on both architectures."""
_X32 = 0x4000_0000


@dataclass(frozen=True)
class Architecture:
    """What filters are told of a machine. ``column``: of DENIED."""

    audit: int
    column: int
    clone: int
    seccomp: int


ARCHITECTURES = {
    "x86_64": Architecture(0xC000_003E, 0, 56, 317),
    "aarch64": Architecture(0xC000_00B7, 1, 220, 277),
}


def install(refused: Refusals, processes: bool = True) -> None:
    """Filter the calls of this process, all of its threads, and what it starts, from now on.

    Without ``processes`` it makes none and starts no program, but threads. The process must have
    no_new_privs. Raises nothing.
    """
    machine = os.uname().machine
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        refused.add("seccomp", f"there is no filter for {machine} here", errno.EOPNOTSUPP)
        return
    code = libc.memory_of(program(architecture, processes))
    header = struct.pack("HxxxxxxQ", len(code) // 8, libc.address_of(code))
    try:
        other = libc.syscall(architecture.seccomp, _SET_MODE_FILTER, _TSYNC, libc.memory_of(header))
        if other:
            refused.add("seccomp", f"thread {other} has another filter", errno.EBUSY)
    except OSError as e:
        refused.add("seccomp", e)


def program(architecture: Architecture, processes: bool = True) -> bytes:
    """The filter. clone3 is said not to exist, since its flags cannot be seen: everybody then uses clone."""
    denied = DENIED if processes else DENIED | PROCESSES
    numbers = sorted({n for each in denied.values() if (n := each[architecture.column]) >= 0})
    about_clone = [_step(_LOAD, _FIRST_ARGUMENT)]
    if processes:
        about_clone.append(_step(_ANY_BIT, NEW_NAMESPACES, 1, 0))
    else:
        about_clone += [_step(_ANY_BIT, NEW_NAMESPACES, 2, 0), _step(_ANY_BIT, CLONE_THREAD, 0, 1)]
    body = [
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, 0, 1),
        _step(_RETURN, _ERRNO | errno.ENOSYS),
        _step(_EQUAL, _CLONE3, 0, 1),
        _step(_RETURN, _ERRNO | errno.ENOSYS),
    ]
    # Each jumps to the last step; those between are the other numbers, what is about clone, and two more.
    to_last = len(about_clone) + 2
    body += [_step(_EQUAL, n, len(numbers) - i - 1 + to_last, 0) for i, n in enumerate(numbers)]
    body += [
        _step(_EQUAL, architecture.clone, 0, len(about_clone)),
        *about_clone,
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _ERRNO | errno.EPERM),
    ]
    head = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture.audit, 1, 0),
        _step(_RETURN, _KILL),
    ]
    return b"".join(head + body)


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    """struct sock_filter: jumps are counted from the next step."""
    return struct.pack("HBBI", code, if_so, if_not, value)
