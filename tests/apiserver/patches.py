"""The three kinds of patch that agents send, applied to plain JSON values. Pure.

Strategic merge is what matters of it here: maps merge as in a merge patch, lists replace.
"""

from __future__ import annotations

from typing import Any

MERGE = "application/merge-patch+json"
JSON = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


class PatchError(Exception):
    """The patch cannot be applied; ``status`` as in HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def apply(content_type: str, target: dict[str, Any], patch: Any) -> dict[str, Any]:
    """``target`` with ``patch`` applied; ``target`` itself stays as it is. Raises PatchError."""
    kind = content_type.partition(";")[0].strip()
    if kind in (MERGE, STRATEGIC):
        if not isinstance(patch, dict):
            raise PatchError(400, "a merge patch must be an object")
        merged: dict[str, Any] = merge(target, patch)
        return merged
    if kind == JSON:
        return json_patch(target, patch)
    raise PatchError(415, f"the patch type {kind!r} is not supported")


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386. Directives of a strategic merge (keys with ``$``) are ignored."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def json_patch(target: dict[str, Any], operations: Any) -> dict[str, Any]:
    """RFC 6902, without move and copy."""
    if not isinstance(operations, list):
        raise PatchError(400, "a JSON patch must be a list")
    for operation in operations:
        try:
            op, path = operation["op"], operation["path"]
            steps = [s.replace("~1", "/").replace("~0", "~") for s in path.split("/")[1:]]
            target = _step(target, steps, op, operation.get("value"))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
            raise PatchError(
                422, f"the server rejected our request due to an error in our request: {e}"
            ) from e
    return target


def _step(node: Any, steps: list[str], op: str, value: Any) -> Any:
    """A copy of ``node`` with the operation applied at ``steps``."""
    copy = node.copy()
    key: Any = steps[0]
    if isinstance(copy, list) and key != "-":
        key = int(key)
    if len(steps) > 1:
        copy[key] = _step(copy[key], steps[1:], op, value)
    elif op == "remove":
        del copy[key]
    elif op == "test":
        if copy[key] != value:
            raise ValueError(f"test of {key!r} failed")
    elif op in ("add", "replace"):
        if op == "replace":
            copy[key]
        if isinstance(copy, list) and op == "add":
            copy.insert(len(copy) if key == "-" else key, value)
        else:
            copy[key] = value
    else:
        raise ValueError(f"the operation {op!r} is not supported")
    return copy
