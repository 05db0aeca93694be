"""Real agents on hosts made of namespaces: what the mesh does for pods, whatever happens to it."""
