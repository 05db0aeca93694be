"""A kubeconfig, of which the current context counts: where the server is, and who we are.

Read here and not by the official client, whose reader quotes whole users with their keys in errors,
and hands the keys on as temporary files. Nothing read here appears in an error or a repr, but the
names of fields. Used by kilo.watcher.access.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from kilo import goyaml
from kilo.errors import PermanentError, ProtocolError
from kilo.watcher.impersonation import headers_of
from kilo.watcher.objects import located

EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
INTERACTIVE_MODES = ("", "Never", "IfAvailable", "Always")
T = TypeVar("T")


class _Secretive(msgspec.Struct, frozen=True):
    """Shows nothing of itself: most of these hold something secret, or may."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(***)"


class Variable(_Secretive, frozen=True):
    """Of the environment of a plugin."""

    name: str
    value: str = ""


class Exec(_Secretive, frozen=True, rename="camel"):
    """A program that prints an ExecCredential. ``command``: a path, or a name to be found on PATH."""

    command: str
    api_version: str
    args: list[str] = []
    env: list[Variable] = []
    install_hint: str = ""
    interactive_mode: str = ""
    provide_cluster_info: bool = False


class Extension(_Secretive, frozen=True):
    """Of a cluster, for whoever knows its name."""

    name: str = ""
    extension: Any = None


class Cluster(_Secretive, frozen=True, rename="kebab"):
    """How the server is reached. ``*_data`` are base64, and count before the file of the same name."""

    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""
    disable_compression: bool = False
    extensions: list[Extension] = []


class User(_Secretive, frozen=True, rename="kebab"):
    """Who we are. A file counts before a token that is written out, as in the Go client."""

    token: str = ""
    token_file: str = msgspec.field(name="tokenFile", default="")
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    username: str = ""
    password: str = ""
    exec: Exec | None = None
    auth_provider: dict[str, Any] | None = None
    as_: str = msgspec.field(name="as", default="")
    as_uid: str = ""
    as_groups: list[str] = []
    as_user_extra: dict[str, list[str]] = {}


class _Context(_Secretive, frozen=True):
    cluster: str = ""
    user: str = ""


class _Named(_Secretive, frozen=True):
    """An entry of one of the three lists; the rest of it is converted once it is the one that counts."""

    name: str = ""
    context: Any = None
    cluster: Any = None
    user: Any = None


class _File(_Secretive, frozen=True, rename="kebab"):
    api_version: str = msgspec.field(name="apiVersion", default="")
    kind: str = ""
    current_context: str = ""
    contexts: list[_Named] = []
    clusters: list[_Named] = []
    users: list[_Named] = []


@dataclass(frozen=True)
class Kubeconfig:
    """The current context of a file. ``user_name``: of its user, "" for none."""

    path: str
    cluster: Cluster
    user: User
    user_name: str = ""
    cluster_name: str = ""
    impersonation: tuple[tuple[str, str], ...] = ()
    """Headers of every request, by which the user acts as another one."""

    def beside(self, path: str) -> str:
        """A path of the file: what is relative is so to the file's own directory."""
        return os.path.join(os.path.dirname(os.path.abspath(self.path)), path)


def parse_kubeconfig(path: str, content: bytes) -> Kubeconfig:
    """What ``content`` says, read from ``path``. Raises PermanentError: one line that names the file."""
    if not content.strip():
        raise PermanentError(f"{path}: the file is empty")
    document = _loaded(path, content)
    file = _converted(path, {} if document is None else document, _File, "")
    if file.api_version not in ("", "v1") or file.kind not in ("", "Config"):
        raise PermanentError(f"{path}: this is no kubeconfig: it is a {file.kind!r} of {file.api_version!r}")
    if not file.current_context:
        raise PermanentError(f"{path}: current-context is missing")
    context = _entry(path, file.contexts, "context", file.current_context, _Context)
    cluster = _entry(path, file.clusters, "cluster", context.cluster, Cluster)
    user = _entry(path, file.users, "user", context.user, User) if context.user else User()
    _check_trust(path, f"clusters[name={context.cluster}].cluster", cluster)
    _check_methods(path, f"users[name={context.user}].user", user)
    if user.exec is not None:
        _check(path, f"users[name={context.user}].user.exec", user.exec)
    try:
        impersonation = headers_of(user.as_, user.as_uid, user.as_groups, user.as_user_extra)
    except ProtocolError as e:
        raise PermanentError(f"{path}: users[name={context.user}].user: {e}") from e
    return Kubeconfig(path, cluster, user, context.user, context.cluster, impersonation)


def _loaded(path: str, content: bytes) -> Any:
    """The YAML as plain values. The parser's own account of an error may quote what it has read."""
    try:
        return goyaml.load(content)
    except goyaml.ERRORS as e:
        mark = getattr(e, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise PermanentError(f"{path}: {where}this is not YAML") from None


def _converted(path: str, value: Any, kind: type[T], place: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as e:
        field, reason = located(e)
        where = place + ("." if place and field and field[0] != "[" else "") + field
        raise PermanentError(f"{path}: {where + ': ' if where else ''}{reason}") from None


def _entry(path: str, entries: list[_Named], kind: str, name: str, form: type[T]) -> T:
    """The part that counts of the entry with this name."""
    names = Counter(entry.name for entry in entries)
    if twice := next((n for n, times in names.items() if times > 1), None):
        raise PermanentError(f"{path}: {kind}s: the name {twice!r} is there twice: remove one of them")
    for entry in entries:
        if entry.name == name:
            place = f"{kind}s[name={name}].{kind}"
            return _converted(path, getattr(entry, kind) or {}, form, place)
    raise PermanentError(f"{path}: there is no {kind} named {name!r} in {kind}s")


def _check_trust(path: str, place: str, cluster: Cluster) -> None:
    """Refuse an authority that would not be used: the token would go to a server that is not verified."""
    if not cluster.insecure_skip_tls_verify:
        return
    authorities = {
        "certificate-authority": cluster.certificate_authority,
        "certificate-authority-data": cluster.certificate_authority_data,
    }
    for field, value in authorities.items():
        if value:
            raise PermanentError(
                f"{path}: {place}: insecure-skip-tls-verify is true beside {field}: remove"
                " insecure-skip-tls-verify, so that the server is verified, or else the authority"
            )


def _check_methods(path: str, place: str, user: User) -> None:
    """Refuse pairs of credentials of which only one could be used, as the Go client does."""
    pairs = (
        ("exec", user.exec, "auth-provider", user.auth_provider),
        ("token", user.token, "username or password", user.username or user.password),
    )
    for one, given, other, beside in pairs:
        if given and beside:
            raise PermanentError(f"{path}: {place}: {one} and {other} exclude each other: remove one of them")


def _check(path: str, place: str, plugin: Exec) -> None:
    if not plugin.command:
        raise PermanentError(f"{path}: {place}.command is missing")
    version, mode = plugin.api_version, plugin.interactive_mode
    if version not in EXEC_VERSIONS:
        raise PermanentError(
            f"{path}: {place}.apiVersion {version!r} is not one of {', '.join(EXEC_VERSIONS)}"
        )
    if mode not in INTERACTIVE_MODES:
        raise PermanentError(f"{path}: {place}.interactiveMode {mode!r} is not known")
    if mode == "Always":
        raise PermanentError(f"{path}: {place}.interactiveMode is Always, and there is no terminal to ask on")
