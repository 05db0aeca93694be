"""What the forkserver loads, by name, before it forks any worker: the code that all of them have.

The collector is told to leave these objects alone for ever: it would write to each of them in every
worker, and their memory would be shared no more. Imported by the forkserver alone, as its last module.
"""

from __future__ import annotations

import gc
from importlib import import_module

for name in ("kilo.supervisor.child", "kilo.bus", "multiprocessing.spawn"):
    import_module(name)
gc.collect()
gc.freeze()
