"""The five workers, by the names that commands, topics, directories and logs have for them."""

from __future__ import annotations

WORKERS = ("watcher", "mesh", "netctl", "cni", "health")
IDS = {"watcher": 11071, "mesh": 11072, "netctl": 11073, "cni": 11074, "health": 11075}
"""The number of each worker's group, and of its user, but for netctl and cni: their files are root's (the
key and the lock, the CNI directory), so they are the owner of those, and no more."""
CLEANERS = {
    "watcher": "the node's annotations",
    "netctl": "the mesh's addresses, routes, rules, firewall rules and sets",
}
"""Those that have something to clean up, in that order, and what."""
