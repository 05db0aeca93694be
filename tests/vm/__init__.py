"""Tests on a kernel that has WireGuard and IPIP: Debian's, in a virtual machine over this machine's files.

``inside`` holds the tests. They are collected twice: by the pytest that somebody started, which boots
one machine and waits, and by a pytest in that machine, which runs them and tells the first.
"""

import os

INSIDE = "KILO_VM" in os.environ
"""Whether this process runs in the virtual machine."""
