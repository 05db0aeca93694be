"""WireGuard: one interface to a device, in the kernel or served by a program such as wireguard-go.

``device`` is the vocabulary, ``uapi`` and ``kernel`` are the two adapters, ``difference`` decides
what to change (pure), ``peers`` is the reconciler.
"""
