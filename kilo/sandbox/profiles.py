"""What each of the five workers is left with: the table of docs/design/sandbox.md, as data.

Made in the worker's process while it has all its privileges; only the watcher's looks into a file, its
kubeconfig. Users and groups have the numbers that deploy/ gives them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from kilo.config import Config
from kilo.model.workers import WORKERS
from kilo.sandbox.kubeconfig import Named, named_by
from kilo.sandbox.profile import Access, Profile, Rule
from kilo.sandbox.status import read_status

IDS = {"watcher": 11071, "mesh": 11072, "netctl": 11073, "cni": 11074, "health": 11075}
"""The number of each worker's group, and of its user, but for netctl and cni: their files are root's (the
key and the lock, the CNI directory), so they are the owner of those, and no more."""
HEARS: Mapping[str, tuple[str, ...]] = {
    "watcher": ("mesh",),
    "mesh": ("watcher", "netctl"),
    "netctl": ("mesh",),
    "cni": ("mesh",),
    "health": ("watcher", "mesh", "netctl", "cni"),
}
"""Whose topics each subscribes to: it is in the groups of these, and so may connect to their sockets."""
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_R = Access.READ
_OWN = Access.READ | Access.WRITE | Access.MAKE
_RUN = Access.READ | Access.EXECUTE
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib")
_PROGRAMS = (
    "/bin",
    "/sbin",
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/opt",
    "/snap/bin",
)
_LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
_EVERYBODY = (
    "/dev/urandom",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf",
    "/proc/self",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
    "/usr/share/locale",
    "/usr/share/zoneinfo",
)
_NAMES = ("/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/protocols")
_NETCTL_READS = (
    "/etc/resolv.conf",
    "/proc/net",
    "/proc/sys/net",
    "/sys/class/net",
    "/sys/devices/virtual/net",
)
_WATCHER_READS = ("/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager")
_TRUSTED = ("/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/pki")
_DRAWS = (
    "/etc/fonts",
    "/proc/filesystems",
    "/usr/local/share/fonts",
    "/usr/share/X11",
    "/usr/share/fontconfig",
    "/usr/share/fonts",
    "/usr/share/graphviz",
    "/usr/share/mime",
    "/usr/share/xml/fontconfig",
    "/var/cache/fontconfig",
)


def profile_for(worker: str, config: Config, environment: Mapping[str, str] | None = None) -> Profile:
    """The profile of one of the five workers. Raises KeyError for another name."""
    return _MADE_BY[worker](config, os.environ if environment is None else environment)


def with_identity_as_it_is(profile: Profile) -> Profile:
    """For a worker that was started alone, as in a container of its own: user and groups are given already,
    and so are the capabilities, of which it keeps no more than the profile has."""
    have = read_status()
    return replace(
        profile,
        uid=os.geteuid(),
        gid=os.getegid(),
        groups=tuple(sorted(os.getgroups())),
        home="",
        reach=(),
        capabilities=tuple(name for name in profile.capabilities if name in have.permitted),
        ambient=tuple(name for name in profile.ambient if name in have.permitted),
    )


def without_files(profile: Profile) -> Profile:
    """As a profile, but of user, groups and files all stays as it is: capabilities and system calls go."""
    return replace(with_identity_as_it_is(profile), rules=(), landlock=False)


def join_groups(*more: int) -> None:
    """Let this process connect to every worker's socket, and those of the groups ``more``, if it may say
    which groups it is in. For the parent and the operator's commands: root may not pass over permissions
    where a container took that away."""
    with contextlib.suppress(OSError):
        os.setgroups(sorted({*os.getgroups(), *IDS.values(), *more}))


def code() -> tuple[str, ...]:
    """Where Python finds the code: its library, what is installed, and this package.

    A directory that merely is on the path, such as the one the program was started in, is not.
    """
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    library = {os.path.dirname(os.__file__)}
    installed = {p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")}
    ours = {os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
    return tuple(sorted(p for p in prefixes | library | installed | ours if p != "/"))


def _rules(access: Access, paths: Iterable[str]) -> tuple[Rule, ...]:
    return tuple(Rule(path, access) for path in paths)


def _common(worker: str, config: Config) -> tuple[Rule, ...]:
    """Its code, what the C library and Python look at, and its own directory on the bus."""
    return (
        *_rules(_R, code()),
        *_rules(_R, _LIBRARIES),
        *_rules(_R, _EVERYBODY),
        Rule("/dev/null", Access.READ | Access.WRITE),
        Rule(_home(worker, config), _OWN),
    )


def _home(worker: str, config: Config) -> str:
    return os.path.join(config.run_dir, worker)


def _groups(worker: str) -> tuple[int, ...]:
    """Its own, and those of whom it hears."""
    return tuple(IDS[name] for name in WORKERS if name == worker or name in HEARS[worker])


def _mesh(config: Config, environment: Mapping[str, str]) -> Profile:
    return Profile(
        uid=IDS["mesh"],
        gid=IDS["mesh"],
        groups=_groups("mesh"),
        home=_home("mesh", config),
        home_group=IDS["mesh"],
        reach=code(),
        rules=_common("mesh", config),
    )


def _cni(config: Config, environment: Mapping[str, str]) -> Profile:
    """A configuration that is a symbolic link is replaced where it points to."""
    folders = dict.fromkeys(
        (os.path.dirname(config.cni_path), os.path.dirname(os.path.realpath(config.cni_path)))
    )
    return Profile(
        uid=0,
        gid=0,
        groups=_groups("cni"),
        home=_home("cni", config),
        home_group=IDS["cni"],
        rules=(
            *_common("cni", config),
            *(Rule(folder, _OWN, directory=0o755) for folder in (folders if config.cni else ())),
        ),
    )


def _health(config: Config, environment: Mapping[str, str]) -> Profile:
    """graphviz loads its plugins from beside its libraries."""
    dot = shutil.which("dot", path=environment.get("PATH", os.defpath))
    drawing: tuple[Rule, ...] = ()
    if dot is not None:
        drawing = (*_rules(_RUN, {dot, os.path.realpath(dot), *_LOADERS}), *_rules(_R, _DRAWS))
    return Profile(
        uid=IDS["health"],
        gid=IDS["health"],
        groups=_groups("health"),
        home=_home("health", config),
        home_group=IDS["health"],
        reach=code(),
        capabilities=("NET_BIND_SERVICE",) if 0 < config.listen[1] < 1024 else (),
        rules=(*_common("health", config), *_rules(_R, _NAMES), *drawing),
        bind=(config.listen[1],),
    )


def _netctl(config: Config, environment: Mapping[str, str]) -> Profile:
    """Abstract sockets are not scoped: netctl asks who has its mark, which may be a process outside. It
    may read /proc to name such a process; what is secret there, Landlock keeps from it all the same."""
    wireguard = shutil.which("wireguard-go", path=environment.get("PATH", os.defpath))
    lock = environment.get("XTABLES_LOCKFILE") or "/run/xtables.lock"
    return Profile(
        uid=0,
        gid=0,
        groups=_groups("netctl"),
        home=_home("netctl", config),
        home_group=IDS["netctl"],
        capabilities=("NET_ADMIN", "NET_RAW"),
        ambient=("NET_ADMIN",),
        rules=(
            *_common("netctl", config),
            *_rules(_R, _NAMES),
            *_rules(_R, _NETCTL_READS),
            *_rules(_RUN, {wireguard, os.path.realpath(wireguard), *_LOADERS} if wireguard else ()),
            Rule("/proc", Access.READ),
            Rule("/dev/net/tun", Access.READ | Access.WRITE | Access.DEVICE),
            Rule(config.state_dir, _OWN, directory=0o700),
            Rule("/run/wireguard", _OWN, directory=0o755),
            Rule(lock, Access.READ | Access.WRITE, file=0o600),
        ),
        scope_sockets=False,
    )


def _watcher(config: Config, environment: Mapping[str, str]) -> Profile:
    """It may read /etc: what is in there is replaced by new files, such as resolv.conf, which rules for files
    would not cover; its user keeps it from what is secret. The same goes for the files of a kubeconfig.
    """
    named = named_by(config.kubeconfig) if config.kubeconfig else Named()
    files = named.files if config.kubeconfig else _in_cluster(config)
    given = [environment[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if environment.get(name)]
    folders = [
        each for path in files for each in (os.path.dirname(path), os.path.dirname(os.path.realpath(path)))
    ]
    rules = (
        *_common("watcher", config),
        *_rules(_R, (*_WATCHER_READS, *_TRUSTED, *given)),
        *_rules(_R, (folder for folder in dict.fromkeys(folders) if folder != "/")),
    )
    return Profile(
        uid=IDS["watcher"],
        gid=IDS["watcher"],
        groups=_groups("watcher"),
        home=_home("watcher", config),
        home_group=IDS["watcher"],
        reach=(*code(), *files),
        rules=(*rules, *(_plugin(named.plugin, environment) if named.plugin else ())),
        connect=None,
        scope_sockets=not named.plugin,
    )


def _in_cluster(config: Config) -> tuple[str, ...]:
    """The token and the authority of the service account; with --master neither is used."""
    return () if config.master else (f"{SERVICE_ACCOUNT}/token", f"{SERVICE_ACCOUNT}/ca.crt")


def _plugin(command: str, environment: Mapping[str, str]) -> tuple[Rule, ...]:
    """For a credential plugin: any program where programs are, and the home directory, where it keeps
    what it knows."""
    where = shutil.which(command, path=environment.get("PATH", os.defpath)) or command
    home = environment.get("HOME", "")
    found = {
        where,
        os.path.realpath(where),
        os.path.dirname(os.path.realpath(where)),
        *_PROGRAMS,
        *_LIBRARIES,
    }
    found |= {p for p in environment.get("PATH", "").split(":") if p.startswith("/") and p != "/"}
    rules = _rules(_RUN, sorted(found - {"", "/"}))
    shared = (*_rules(_R, ("/usr/share", "/proc/filesystems", "/proc/meminfo", "/proc/cpuinfo")),)
    return (*rules, *shared, *(_rules(_OWN, (home,)) if home not in ("", "/") else ()))


_MADE_BY: dict[str, Callable[[Config, Mapping[str, str]], Profile]] = {
    "watcher": _watcher,
    "mesh": _mesh,
    "netctl": _netctl,
    "cni": _cni,
    "health": _health,
}
