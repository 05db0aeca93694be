"""How the API server is reached and who we are, as the flags and the files that they name say.

Files are read, nothing more: no program is run and nobody is asked. Used by kilo.watcher.session.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kilo.errors import PermanentError, ProtocolError
from kilo.watcher.kubeconfig import Exec, Kubeconfig, parse_kubeconfig
from kilo.watcher.official import official
from kilo.watcher.tls import Tls
from kilo.watcher.url import basic, parsed, shown, without_user

FILE_LIMIT = 16 << 20
"""Bytes that are read of a file."""
Stamp = tuple[int, int, int] | None
"""Inode, size and last change in ns; None of a file that is not there."""


@dataclass(frozen=True)
class Access:
    """``source`` is named in errors; ``server``: a URL without a slash at its end; ``authorization``: the
    value of that header, or "".

    Where there is a ``plugin`` or a ``provider``, it must be asked who we are. ``files``: all that
    were read, and in which state each was.
    """

    source: str
    server: str
    tls: Tls = field(default_factory=Tls)
    proxy: str = field(default="", repr=False)
    authorization: str = field(default="", repr=False)
    kubeconfig: Kubeconfig | None = None
    plugin: Exec | None = None
    provider: Mapping[str, Any] | None = field(default=None, repr=False)
    files: Mapping[str, Stamp] = field(default_factory=dict)
    credential: str = ""
    """What is read here to prove who asks, for a person; "" for nothing."""
    authority: str = "none of this host's authorities"
    """By what the server is verified, for a person."""

    @property
    def impersonation(self) -> tuple[tuple[str, str], ...]:
        """Headers of every request, by which the user acts as another one."""
        return self.kubeconfig.impersonation if self.kubeconfig else ()

    @property
    def giver(self) -> str:
        """What says who we are, for a person."""
        if self.plugin is not None:
            return f"credential plugin {self.plugin.command}"
        return (
            self.user
            if self.provider is None
            else f"{self.user}: auth-provider {self.provider.get('name')!r}"
        )

    @property
    def user(self) -> str:
        """The file, and the user in it."""
        name = self.kubeconfig.user_name if self.kubeconfig else ""
        return f"{self.source}: user {name!r}" if name else self.source

    @property
    def name(self) -> str:
        """The name that the server's certificate must have."""
        return self.tls.name or (parsed(self.server).host or "").strip("[]")


def read_access(kubeconfig: str, master: str) -> Access:
    """What the flags ``--kubeconfig`` and ``--master`` stand for; neither: the cluster's own service account.

    Raises PermanentError: one line that names the file and what is wrong with it.
    """
    files = _Files()
    if kubeconfig:
        access = _of_kubeconfig(kubeconfig, files)
    elif master:
        access = Access("--master", master)
    else:
        access = _in_cluster(files)
    text, tls = master or access.server, access.tls
    if "://" not in text and (tls.ca or tls.certificate or not tls.verify):
        text = f"https://{text}"  # as in the Go client: what is for TLS says that TLS is spoken
    server = _server(text, "--master" if master else access.source)
    if access.impersonation and not server.startswith("https:"):
        # Without TLS the answer may come from any host, so a request that acts as another user is not sent.
        raise PermanentError(
            f"{access.user}: as is for servers with https:// only, and the server is {server}"
        )
    return replace(access, server=server, files=files.stamps)


def _server(text: str, source: str) -> str:
    """The URL of a server, without a slash at its end, and without a user, who is for the users of a
    kubeconfig to say. ``source``: where it is said. Raises PermanentError."""
    try:
        url = parsed(text)
        if url.scheme not in ("http", "https") or url.query is not None or url.fragment is not None:
            raise ProtocolError("it is not a server's URL")
    except ProtocolError as e:
        what = f"the server {shown(text)!r} is not a URL, http:// or https://"
        raise PermanentError(f"{source}: {what}") from e
    return without_user(url).rstrip("/")


def bearer(token: str) -> str:
    """The header's value for a token. Raises ProtocolError, which does not show it."""
    token = token.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ProtocolError("it holds characters that no token has" if token else "it is empty")
    return f"Bearer {token}"


def stamp_of(path: str) -> Stamp:
    """The state of a file now."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def _stamp(state: os.stat_result) -> Stamp:
    return state.st_ino, state.st_size, state.st_mtime_ns


class _Files:
    """Reads files, and notes in which state each was."""

    def __init__(self) -> None:
        self.stamps: dict[str, Stamp] = {}

    def note(self, path: str) -> None:
        """``path`` is read by somebody else, from now on."""
        self.stamps[path] = stamp_of(path)

    def read(self, path: str) -> bytes:
        """Raises PermanentError."""
        try:
            with open(path, "rb") as file:
                self.stamps[path] = _stamp(os.fstat(file.fileno()))
                return file.read(FILE_LIMIT)
        except OSError as e:
            raise PermanentError(f"cannot read {path}: {e.strerror}") from e


def _of_kubeconfig(path: str, files: _Files) -> Access:
    if not os.path.exists(path):
        raise PermanentError(f"--kubeconfig: {path} does not exist")
    config = parse_kubeconfig(path, files.read(path))
    cluster, user = config.cluster, config.user

    def pem(data: str, file: str, field: str) -> bytes:
        try:
            return _decoded(data) if data else files.read(config.beside(file)) if file else b""
        except (binascii.Error, ValueError) as e:
            raise PermanentError(f"{path}: {field}-data is not base64") from e

    tls = Tls(
        ca=pem(cluster.certificate_authority_data, cluster.certificate_authority, "certificate-authority"),
        certificate=pem(user.client_certificate_data, user.client_certificate, "client-certificate"),
        key=pem(user.client_key_data, user.client_key, "client-key"),
        verify=not cluster.insecure_skip_tls_verify,
        name=cluster.tls_server_name,
    )
    access = Access(path, cluster.server, tls, cluster.proxy_url, kubeconfig=config)
    if cluster.certificate_authority_data:
        access = replace(
            access, authority=f"certificate-authority-data of cluster {config.cluster_name!r} of {path}"
        )
    elif cluster.certificate_authority:
        access = replace(access, authority=config.beside(cluster.certificate_authority))
    if user.client_certificate or user.client_certificate_data:
        access = replace(access, credential=f"the client certificate of {access.user}")
    if user.token or user.token_file:
        authorization, where = _token(config, files)
        return replace(access, authorization=authorization, credential=f"the token {where}")
    if user.exec or user.auth_provider:
        return replace(access, plugin=user.exec, provider=user.auth_provider)
    if user.username or user.password:
        authorization = basic(user.username, user.password)
        return replace(access, authorization=authorization, credential=f"the password of {access.user}")
    return access


def _token(config: Kubeconfig, files: _Files) -> tuple[str, str]:
    """The header's value for a user with a token, or a file of one, which counts first while it is there; and
    where the token is, for a person."""
    user = config.user
    if user.token_file:
        where = config.beside(user.token_file)
        files.note(where)
        try:
            return _bearer(files.read(where).decode(errors="replace"), where), f"in {where}"
        except PermanentError:
            if not user.token:
                raise
    return _bearer(user.token, f"{config.path}: the token"), f"of {config.path}: user {config.user_name!r}"


def _decoded(data: str) -> bytes:
    """The bytes of a base64 text, which may be broken into lines. Raises ValueError."""
    return base64.b64decode("".join(data.split()), validate=True)


def _bearer(token: str, where: str) -> str:
    try:
        return bearer(token)
    except ProtocolError as e:
        raise PermanentError(f"{where}: {e}") from e


def _in_cluster(files: _Files) -> Access:
    library = official()
    configuration = library.configuration()
    token, authority = library.in_cluster_files
    files.note(token)
    try:
        library.load_in_cluster(client_configuration=configuration)
    except (library.error, OSError, ValueError) as e:
        hint = "give --kubeconfig or --master outside a cluster"
        raise PermanentError(f"cannot read the in-cluster configuration: {str(e).rstrip('.')}; {hint}") from e
    said = str(configuration.api_key.get("BearerToken", ""))
    authorization = _bearer(said.partition(" ")[2], token)
    tls, credential = Tls(ca=files.read(authority)), f"the service account's token in {token}"
    made = Access(authority, configuration.host, tls, authorization=authorization)
    return replace(made, credential=credential, authority=authority)
