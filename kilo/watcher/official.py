"""The official Kubernetes client, of which three things are used: its connection pool with the choice
of a proxy, its reading of the in-cluster configuration, and what it knows of auth-providers.

Loaded as it comes, it brings 700 models, pydantic, requests, websockets and an OAuth library. None
of that is needed to read JSON, so the ``__init__`` of its packages is passed over, and only the
modules named below run. Measured with kubernetes 37 on Python 3.11, in a new interpreter:

==================== ====== =======
import               time   memory
==================== ====== =======
nothing              0 s    8.9 MB
the package          0.52 s 50.4 MB
what is loaded here  0.07 s 25.9 MB
urllib3 alone        0.06 s 23.4 MB
==================== ====== =======

Where that does not work with the version that is installed, the package is imported in full.
Nothing stays behind in ``sys.modules``: who imports kubernetes later gets the real one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from kilo.errors import PermanentError, TemporaryError

_PACKAGES = ("kubernetes", "kubernetes.client", "kubernetes.config", "kubernetes.utils")


@dataclass(frozen=True)
class Official:
    """What the official client is used for."""

    configuration: Callable[[], Any]
    rest_client: Callable[[Any], Any]
    load_in_cluster: Callable[..., None]
    in_cluster_files: tuple[str, ...]
    """Those of the service account: its token, and the server's authority."""
    error: type[Exception]
    """What it raises where the in-cluster configuration is not what it must be."""


class _Shell(ModuleType):
    """Stands for a package that is not to run: its submodules can be imported, and what is asked of
    it after the import comes from the real one."""

    def __init__(self, name: str, path: list[str]) -> None:
        super().__init__(name)
        self.__path__ = path

    def __getattr__(self, attribute: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self.__name__), attribute)


@contextmanager
def _shells(root: str) -> Iterator[dict[str, _Shell]]:
    """Put the shells in place, and take them and all that was loaded through them away again."""
    before = {name: sys.modules.get(name) for name in _PACKAGES}
    shells = {name: _Shell(name, [os.path.join(root, *name.split(".")[1:])]) for name in _PACKAGES}
    sys.modules.update(shells)
    try:
        yield shells
    finally:
        for name in [n for n in sys.modules if n.startswith("kubernetes.")] + list(shells):
            sys.modules.pop(name, None)
        sys.modules.update({name: module for name, module in before.items() if module is not None})


def _load_lean(root: str) -> Official:
    with _shells(root) as shells:
        configuration = importlib.import_module("kubernetes.client.configuration").Configuration
        shells["kubernetes.client"].__dict__["Configuration"] = configuration
        rest = importlib.import_module("kubernetes.client.rest")
        return _official(configuration, rest, importlib.import_module("kubernetes.config.incluster_config"))


def _load_full() -> Official:
    return _official(
        importlib.import_module("kubernetes.client").Configuration,
        importlib.import_module("kubernetes.client.rest"),
        importlib.import_module("kubernetes.config.incluster_config"),
    )


def _official(configuration: Callable[[], Any], rest: Any, in_cluster: Any) -> Official:
    return Official(
        configuration,
        rest.RESTClientObject,
        in_cluster.load_incluster_config,
        (in_cluster.SERVICE_TOKEN_FILENAME, in_cluster.SERVICE_CERT_FILENAME),
        in_cluster.ConfigException,
    )


def authorization_of(provider: Mapping[str, Any]) -> str:
    """What a user's ``auth-provider`` gives as the value of the header Authorization.

    Imports the whole package, and may ask the provider, which may take any time. Raises
    TemporaryError, and whatever comes out of the libraries that ask; either may quote a secret.
    """
    package = importlib.import_module("kubernetes.config")
    reader = importlib.import_module("kubernetes.config.kube_config")
    configuration = importlib.import_module("kubernetes.client").Configuration()
    alone = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://none"}}],
        "users": [{"name": "u", "user": {"auth-provider": dict(provider)}}],
    }
    try:
        reader.load_kube_config_from_dict(alone, client_configuration=configuration, persist_config=False)
    except package.ConfigException as e:
        raise TemporaryError(f"auth-provider {provider.get('name')!r}: {e}") from e
    finally:
        reader._cleanup_temp_files()
    if not (authorization := configuration.api_key.get("BearerToken", "")):
        raise TemporaryError(f"auth-provider {provider.get('name')!r} gives no token")
    return str(authorization)


_loaded: Official | None = None


def official() -> Official:
    """The official client, loaded once. The first call is that of the constructor of Sessions, before there
    are threads: while it loads, another one's import would get the shells.

    Raises PermanentError if it is not installed.
    """
    global _loaded
    if _loaded is None:
        spec = importlib.util.find_spec("kubernetes")
        if spec is None or spec.origin is None:
            raise PermanentError("the Python package kubernetes is not installed")
        if "kubernetes" in sys.modules:
            _loaded = _load_full()
        else:
            try:
                _loaded = _load_lean(os.path.dirname(spec.origin))
            except (ImportError, AttributeError):
                _loaded = _load_full()
    return _loaded
