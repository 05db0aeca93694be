"""The five workers, by the names that commands, topics, directories and logs have for them."""

from __future__ import annotations

WORKERS = ("watcher", "mesh", "netctl", "cni", "health")
CLEANERS = {
    "watcher": "the node's annotations",
    "netctl": "the mesh's addresses, routes, rules, firewall rules and sets",
}
"""Those that have something to clean up, in that order, and what."""
