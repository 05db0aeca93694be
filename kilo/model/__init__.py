"""Values: frozen, comparable, parsed strictly at the edge. Nothing here does I/O."""
