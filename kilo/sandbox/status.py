"""What a process may, as the kernel tells anybody who asks: /proc/PID/status.

Source: proc_pid_status(5). Landlock is not in there: of that only the process itself knows.
"""

from __future__ import annotations

import msgspec

CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
"""By number, from capability.h."""


class Status(msgspec.Struct, frozen=True):
    """``uids`` and ``gids``: real, effective, saved, file system. Capabilities are names, in the order of
    their numbers; ``seccomp``: 0 none, 1 strict, 2 filters, of which there are ``filters`` (0 also where
    the kernel does not count them)."""

    uids: tuple[int, int, int, int]
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    permitted: tuple[str, ...]
    effective: tuple[str, ...]
    inheritable: tuple[str, ...]
    ambient: tuple[str, ...]
    bounding: tuple[str, ...]
    no_new_privs: bool
    seccomp: int
    filters: int
    threads: int

    @property
    def uid(self) -> int:
        """The effective user."""
        return self.uids[1]


def names_of(mask: int) -> tuple[str, ...]:
    """The capabilities in a mask; one that is newer than this program by its number."""
    known = len(CAPABILITIES)
    return tuple(
        CAPABILITIES[bit] if bit < known else f"CAP_{bit}"
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    )


def mask_of(names: tuple[str, ...]) -> int:
    """The mask of capabilities given by name. Raises ValueError for a name that is none."""
    mask = 0
    for name in names:
        mask |= 1 << CAPABILITIES.index(name)
    return mask


def read_status(pid: int | str = "self") -> Status:
    """Of process ``pid`` now. Raises OSError: FileNotFoundError or ProcessLookupError if it is gone."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
        lines = dict(line.rstrip("\n").split(":", 1) for line in f if ":" in line)

    def numbers(name: str) -> tuple[int, ...]:
        return tuple(int(word) for word in lines.get(name, "").split())

    def capabilities(name: str) -> tuple[str, ...]:
        return names_of(int(lines.get(name, "0"), 16))

    def number(name: str) -> int:
        return next(iter(numbers(name)), 0)

    return Status(
        uids=numbers("Uid"),  # type: ignore[arg-type]
        gids=numbers("Gid"),  # type: ignore[arg-type]
        groups=numbers("Groups"),
        permitted=capabilities("CapPrm"),
        effective=capabilities("CapEff"),
        inheritable=capabilities("CapInh"),
        ambient=capabilities("CapAmb"),
        bounding=capabilities("CapBnd"),
        no_new_privs=bool(number("NoNewPrivs")),
        seccomp=number("Seccomp"),
        filters=number("Seccomp_filters"),
        threads=number("Threads"),
    )
