"""The planner: from the state of the cluster to what this host needs. Pure, but for ``worker``.

See docs/design/mesh.md.
"""
