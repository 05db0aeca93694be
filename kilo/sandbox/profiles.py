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
from kilo.model.workers import IDS, WORKERS
from kilo.sandbox import landlock
from kilo.sandbox.given import given, holds_code, is_below, may_be_read
from kilo.sandbox.kubeconfig import Named, named_by
from kilo.sandbox.profile import Access, Profile, Rule, without_files
from kilo.sandbox.status import read_status

SUPERVISOR = 11070
"""The number of a user that no process is, and of a group that the parent is in, and no worker that it gave
a user of its own."""
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
_STORES = ("/nix/store", "/gnu/store")
"""Of the packages of Nix and Guix: a package's libraries are other packages, and everybody may read all."""
_LIBRARIES = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    *_STORES,
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


def join_groups(*more: int) -> None:
    """Let this process connect to every worker's socket, the parent's own, and those of the groups ``more``,
    if it may say which groups it is in. For the parent and the operator's commands: root may not pass over
    permissions where a container took that away."""
    with contextlib.suppress(OSError):
        os.setgroups(sorted({*os.getgroups(), *IDS.values(), SUPERVISOR, *more}))


def code(guarded: Iterable[str] = ()) -> tuple[str, ...]:
    """Where Python finds the code: its library, what is installed, this package, and of the other directories
    that it was given those with nothing that is to be kept from workers, as ``guarded`` is.

    A directory that merely is on the path, such as the one the program was started in, is not.
    """
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    library = {os.path.dirname(os.__file__)}
    installed = {p for p in sys.path if _has_packages(p)}
    ours = {_package()}
    certain = {p for p in prefixes | library | installed | ours if p != "/"}
    more = {p for p in given() if not is_below(p, certain) and may_be_read(p, guarded)}
    return tuple(sorted(certain | more))


def closed_code(config: Config) -> tuple[str, ...]:
    """What is on Python's path with code in it, and closed to workers, where Landlock closes anything. Not
    the directory that this package is in, as a checkout's: that one is there for the package."""
    try:
        if config.sandbox != "full" or not landlock.version():
            return ()
    except OSError:
        return ()
    known = (*code(_guarded(config)), *_LIBRARIES)
    around = os.path.realpath(os.path.dirname(_package()))
    others = (p for p in dict.fromkeys(sys.path) if p.startswith("/") and os.path.realpath(p) != around)
    return tuple(path for path in others if _is_closed(path, known))


def _package() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _is_closed(path: str, known: Iterable[str]) -> bool:
    try:
        return not is_below(path, known) and (os.path.isfile(path) or holds_code(path))
    except OSError:
        return False


def _guarded(config: Config) -> tuple[str, ...]:
    return config.state_dir, config.run_dir, config.kubeconfig, SERVICE_ACCOUNT


def _has_packages(path: str) -> bool:
    """Whether packages were installed there: into ``site-packages``, or a directory of its own for each."""
    if os.path.basename(path) in ("site-packages", "dist-packages"):
        return True
    try:
        return path.startswith("/") and any(name.endswith(".dist-info") for name in os.listdir(path))
    except OSError:
        return False


def _rules(access: Access, paths: Iterable[str]) -> tuple[Rule, ...]:
    return tuple(Rule(path, access) for path in paths)


def _program(name: str, environment: Mapping[str, str]) -> tuple[Rule, ...]:
    """A program that may be started: where it is, or else wherever it may be installed later."""
    path = environment.get("PATH", os.defpath)
    found = shutil.which(name, path=path)
    if found:
        return _rules(_RUN, dict.fromkeys((found, os.path.realpath(found), *_LOADERS)))
    folders = dict.fromkeys(folder for folder in path.split(os.pathsep) if folder.startswith("/"))
    awaited = (Rule(os.path.join(folder, name), _RUN, awaited=True) for folder in folders)
    return (*awaited, *_rules(_RUN, _LOADERS))


def _profile(worker: str, config: Config, *, root: bool = False) -> Profile:
    """What all have: user and groups, the code, what the C library and Python look at, and the worker's
    own directory on the bus. ``root``: it is user and group 0, with its own as a further one."""
    home = os.path.join(config.run_dir, worker)
    own = IDS[worker]
    found = code(_guarded(config))
    return Profile(
        uid=0 if root else own,
        gid=0 if root else own,
        groups=tuple(IDS[name] for name in WORKERS if name == worker or name in HEARS[worker]),
        home=home,
        home_group=own,
        reach=() if root else (*found, config.run_dir),
        rules=(
            *(Rule(path, _R, watched=False) for path in found),
            *_rules(_R, _LIBRARIES),
            *_rules(_R, _EVERYBODY),
            Rule("/dev/null", Access.READ | Access.WRITE),
            Rule(home, _OWN),
        ),
    )


def _mesh(config: Config, environment: Mapping[str, str]) -> Profile:
    return replace(_profile("mesh", config), processes=False)


def _cni(config: Config, environment: Mapping[str, str]) -> Profile:
    """A configuration that is a symbolic link is replaced where it points to."""
    common = replace(_profile("cni", config, root=True), processes=False)
    if not config.cni:
        return common
    folders = dict.fromkeys(map(os.path.dirname, (config.cni_path, os.path.realpath(config.cni_path))))
    return replace(
        common,
        rules=(*common.rules, *(Rule(folder, _OWN, directory=0o755) for folder in folders)),
    )


def _health(config: Config, environment: Mapping[str, str]) -> Profile:
    """graphviz loads its plugins from beside its libraries."""
    common = _profile("health", config)
    return replace(
        common,
        capabilities=("NET_BIND_SERVICE",) if 0 < config.listen[1] < 1024 else (),
        rules=(
            *common.rules,
            *_rules(_R, _NAMES),
            *_program("dot", environment),
            *_rules(_R, _DRAWS),
        ),
        bind=(config.listen[1],),
    )


def _netctl(config: Config, environment: Mapping[str, str]) -> Profile:
    """Abstract sockets are not scoped: netctl asks who has its mark, which may be a process outside. It
    may read /proc to name such a process; what is secret there, Landlock keeps from it all the same.

    The directory of wireguard-go's sockets, by which the private key can be had, is for netctl's group:
    other workers that are user 0 do not come into it. Unless somebody else is to run wireguard-go.
    """
    common = _profile("netctl", config, root=True)
    capabilities: tuple[str, ...] = ("NET_ADMIN", "NET_RAW")
    if config.firewall == "nftables" and "NET_RAW" not in read_status().permitted:
        capabilities = ("NET_ADMIN",)  # all that it needs, where no legacy tables are to be removed
    sockets = Rule("/run/wireguard", _OWN, directory=0o755)
    if config.create_interface:
        own = (f"{config.interface}.sock",)
        sockets = replace(sockets, directory=0o770, owner=IDS["netctl"], ours=own)
    lock = environment.get("XTABLES_LOCKFILE") or "/run/xtables.lock"
    return replace(
        common,
        capabilities=capabilities,
        ambient=("NET_ADMIN",),
        rules=(
            *common.rules,
            *_rules(_R, _NAMES),
            *_rules(_R, _NETCTL_READS),
            *_program("wireguard-go", environment),
            Rule("/proc", Access.READ),
            Rule("/dev/net/tun", Access.READ | Access.WRITE | Access.DEVICE),
            Rule(config.state_dir, _OWN, directory=0o700),
            sockets,
            Rule(lock, Access.READ | Access.WRITE, file=0o600),
        ),
        scope_sockets=False,
    )


def _watcher(config: Config, environment: Mapping[str, str]) -> Profile:
    """It may read /etc: what is in there is replaced by new files, such as resolv.conf, which rules for files
    would not cover; its user keeps it from what is secret. The same goes for the files of a kubeconfig.

    With a credential plugin, which may be any program and need anything of whoever installed it (a home, a
    cache, an agent's socket), it gives up no more than it can without looking at users and files.
    """
    common = _profile("watcher", config)
    named = named_by(config.kubeconfig) if config.kubeconfig else Named()
    if named.plugin:
        why = f"the kubeconfig's credential plugin {named.plugin} may need what root has"
        return replace(without_files(common), spared=why)
    files = named.files if config.kubeconfig else _in_cluster(config)
    given = [environment[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if environment.get(name)]
    folders = [
        each for path in files for each in (os.path.dirname(path), os.path.dirname(os.path.realpath(path)))
    ]
    return replace(
        common,
        named=(config.kubeconfig, named) if config.kubeconfig else None,
        reach=(*common.reach, *files),
        rules=(
            *common.rules,
            *_rules(_R, (*_WATCHER_READS, *_TRUSTED, *given)),
            *_rules(_R, (folder for folder in dict.fromkeys(folders) if folder != "/")),
        ),
        connect=None,
    )


def _in_cluster(config: Config) -> tuple[str, ...]:
    """The token and the authority of the service account; with --master neither is used."""
    return () if config.master else (f"{SERVICE_ACCOUNT}/token", f"{SERVICE_ACCOUNT}/ca.crt")


_MADE_BY: dict[str, Callable[[Config, Mapping[str, str]], Profile]] = {
    "watcher": _watcher,
    "mesh": _mesh,
    "netctl": _netctl,
    "cni": _cni,
    "health": _health,
}
