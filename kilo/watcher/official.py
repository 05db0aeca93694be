"""The official Kubernetes client, of which two things are used: its reading of configuration, and
its connection pool.

Loaded as it comes, it brings 700 models, pydantic, requests, websockets and an OAuth library. None
of that is needed to read JSON, so the ``__init__`` of its packages is passed over, and only the
modules named below run. Measured with kubernetes 37 on Python 3.11, in a new interpreter:

==================== ====== =======
import               time   memory
==================== ====== =======
nothing              0 s    9.5 MB
the package          0.53 s 49.7 MB
what is loaded here  0.14 s 30.4 MB
urllib3 and yaml     0.12 s 26.8 MB
==================== ====== =======

Where that does not work with the version that is installed, the package is imported in full.
Nothing stays behind in ``sys.modules``: who imports kubernetes later gets the real one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from kilo.errors import PermanentError

_PACKAGES = ("kubernetes", "kubernetes.client", "kubernetes.config", "kubernetes.utils")
_STRANGERS = ("requests_oauthlib", "oauthlib", "oauthlib.oauth2")
"""Needed only to renew the tokens of an OpenID Connect provider named in a kubeconfig."""


@dataclass(frozen=True)
class Official:
    """What the official client is used for."""

    configuration: Callable[[], Any]
    rest_client: Callable[[Any], Any]
    load_kubeconfig: Callable[..., None]
    load_in_cluster: Callable[..., None]
    error: type[Exception]
    """What it raises where credentials or a configuration are not what they must be."""
    syntax_error: type[Exception]
    """What its YAML parser raises."""


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


def _late(module: str, name: str) -> Callable[..., Any]:
    """A callable that imports what it stands for when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


@contextmanager
def _shells(root: str) -> Iterator[dict[str, _Shell]]:
    """Put the shells in place, and take them and all that was loaded through them away again."""
    before = {name: sys.modules.get(name) for name in (*_PACKAGES, *_STRANGERS)}
    shells = {name: _Shell(name, [os.path.join(root, *name.split(".")[1:])]) for name in _PACKAGES}
    shells |= {name: _Shell(name, []) for name in _STRANGERS if before[name] is None}
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
        client = shells["kubernetes.client"]
        client.__dict__["Configuration"] = configuration
        client.__dict__["ApiClient"] = _late("kubernetes.client", "ApiClient")
        if "oauthlib" in shells:
            shells["oauthlib"].__dict__["oauth2"] = shells["oauthlib.oauth2"]
        if "requests_oauthlib" in shells:
            late = _late("requests_oauthlib", "OAuth2Session")
            shells["requests_oauthlib"].__dict__["OAuth2Session"] = late
        rest = importlib.import_module("kubernetes.client.rest")
        kubeconfig = importlib.import_module("kubernetes.config.kube_config")
        in_cluster = importlib.import_module("kubernetes.config.incluster_config")
        return Official(
            configuration,
            rest.RESTClientObject,
            kubeconfig.load_kube_config,
            in_cluster.load_incluster_config,
            kubeconfig.ConfigException,
            kubeconfig.yaml.YAMLError,
        )


def _load_full() -> Official:
    client = importlib.import_module("kubernetes.client")
    config = importlib.import_module("kubernetes.config")
    rest = importlib.import_module("kubernetes.client.rest")
    return Official(
        client.Configuration,
        rest.RESTClientObject,
        config.load_kube_config,
        config.load_incluster_config,
        config.ConfigException,
        config.kube_config.yaml.YAMLError,
    )


_loaded: Official | None = None


def official() -> Official:
    """The official client, loaded once. Call it first where no other thread imports anything.

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
