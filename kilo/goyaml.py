"""YAML as Go programs read it (the parser of kubectl), where PyYAML reads it otherwise.

The first document counts, whatever follows it. Tabs may stand between tokens. ``2024-01-01``, ``12:30`` and
``=`` are texts. The parser in C is not used: it dies of lists in lists in lists. Pure; used by
kilo.watcher.kubeconfig and kilo.sandbox.kubeconfig.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import yaml

_TEXTS = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_BINARY, _STRING = "tag:yaml.org,2002:binary", "tag:yaml.org,2002:str"
ERRORS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""All that the parser raises for one document or another."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
    allow_simple_key: bool
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TEXTS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0] and _SEXAGESIMAL.fullmatch(value):
            return _STRING
        return super().resolve(kind, value, implicit)

    def scan_to_next_token(self) -> None:
        """Pass over blanks and comments, and tabs where no indentation is meant."""
        if self.index == 0 and self.peek() == "\ufeff":
            self.forward()
        while True:
            while self.peek() == " " or (
                self.peek() == "\t" and (self.flow_level or not self.allow_simple_key)
            ):
                self.forward()
            if self.peek() == "#":
                while self.peek() not in "\0\r\n\x85\u2028\u2029":
                    self.forward()
            if not self.scan_line_break():
                return
            if not self.flow_level:
                self.allow_simple_key = True


def _text_of(loader: _Loader, node: Any) -> str:
    return base64.b64decode(loader.construct_scalar(node)).decode()


_Loader.add_constructor(_BINARY, _text_of)


def load(content: bytes) -> Any:
    """The first document as plain values, None of an empty one. Keys are texts, and what is null is left out.

    Raises one of ERRORS, whose texts may quote the document.
    """
    loader = _Loader(content)
    try:
        return _plain(loader.get_data() if loader.check_data() else None)
    finally:
        loader.dispose()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_plain(v) for v in value if v is not None]
    return value


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)
