"""Starts one container as a container runtime would: a program of its own, which becomes the container.

Its argument is what tests.lab.kubelet read of the manifest, as JSON. It is run as root on a host of the
lab, in namespaces of its own for mounts and processes. The root file system is a read-only tmpfs with
what an image would have of the machine: programs, libraries, Python and this checkout. Beside that there
is what every container gets (/proc with its sysctls read-only, /sys read-only, a few devices), and the
volumes. Then the identity is taken, all capabilities but the given ones go from the bounding set, and
the command takes this process's place.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
OF_ETC = ("alternatives", "group", "ld.so.cache", "nsswitch.conf", "passwd", "protocols", "services", "ssl")
DEVICES = ("full", "null", "random", "tty", "urandom", "zero")
CNI_PLUGINS = "/usr/lib/cni"

_libc = ctypes.CDLL(None, use_errno=True)


def main(text: str) -> None:
    """Become the container."""
    spec = json.loads(text)
    root = Path("/run/rootfs")
    root.mkdir(exist_ok=True)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("rootfs", root, "tmpfs", 0, "mode=0755")
    image(root, spec["image"])
    system(root)
    for volume in spec["volumes"]:
        bind(volume["source"], root / volume["path"].lstrip("/"), volume["read_only"])
    if spec["read_only"]:
        mount("none", root, "", MS_REMOUNT | MS_BIND | MS_RDONLY)
    enter(root)
    os.execvpe("setpriv", ["setpriv", *identity(spec), *spec["command"]], spec["environment"])


def identity(spec: dict[str, Any]) -> list[str]:
    """The arguments of setpriv for a container's user, groups and capabilities."""
    kept = "".join(f",+{name.lower()}" for name in spec["capabilities"])
    groups = ",".join(str(group) for group in spec["groups"])
    return [
        f"--reuid={spec['user']}",
        f"--regid={spec['group']}",
        f"--groups={groups}" if groups else "--clear-groups",
        f"--bounding-set=-all{kept}",
        "--inh-caps=-all",
        *(["--no-new-privs"] if spec["no_new_privileges"] else []),
        "--",
    ]


def image(root: Path, paths: Sequence[str]) -> None:
    """What an image has: the machine's programs, ``paths``, and of /etc what programs look up."""
    for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin"):
        machine = Path("/", name)
        if machine.is_symlink():
            (root / name).symlink_to(machine.readlink())
        elif machine.is_dir():
            bind(machine, root / name, True)
    for path in ("/usr", *paths):
        if not path.startswith("/usr/"):
            bind(path, root / path.lstrip("/"), True)
    bind(CNI_PLUGINS, root / "opt/cni/bin", True)
    for name in ("etc", "tmp", "var/lib", "run", "root"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "var/run").symlink_to("../run")
    for name in OF_ETC:
        copied = Path("/run/machine/etc", name)
        if copied.is_dir():
            bind(copied, root / "etc" / name, True)
        elif copied.exists():
            shutil.copy(copied, root / "etc" / name)
    for name in ("hosts", "resolv.conf", "hostname"):  # the kubelet's, made of the host's
        shutil.copy(Path("/etc", name), root / "etc" / name)


def system(root: Path) -> None:
    """What every container has beside its image."""
    for name in ("proc", "sys", "dev"):
        (root / name).mkdir(exist_ok=True)
    mount("proc", root / "proc", "proc", MS_NOSUID | MS_NODEV)
    bind(root / "proc/sys", root / "proc/sys", True)
    bind("/sys", root / "sys", True)
    mount("dev", root / "dev", "tmpfs", MS_NOSUID, "mode=0755")
    for name in DEVICES:
        bind(f"/dev/{name}", root / "dev" / name, False)
    (root / "dev/shm").mkdir()
    mount("shm", root / "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=64m")
    (root / "dev/fd").symlink_to("/proc/self/fd")


def enter(root: Path) -> None:
    """Make ``root`` the root, and let go of the old one."""
    os.chdir(root)
    check(_libc.pivot_root(b".", b"."), "pivot_root")
    check(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def bind(source: str | Path, target: Path, read_only: bool) -> None:
    """Show ``source`` at ``target``, which is made."""
    if not target.exists():
        if Path(source).is_dir():
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    mount(source, target, "", MS_BIND | MS_REC)
    if read_only:
        mount("none", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY)


def mount(source: str | Path, target: str | Path, kind: str, flags: int, data: str = "") -> None:
    words = (os.fsencode(source), os.fsencode(target), kind.encode() or None)
    check(_libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main(sys.argv[1])
