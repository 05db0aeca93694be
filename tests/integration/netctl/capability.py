"""What netctl does where it may not do something."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_VERSION_3 = 0x20080522
_NET_ADMIN = 12


def without_net_admin(work: Callable[[], T]) -> T:
    """``work`` without CAP_NET_ADMIN, in this thread alone, which then gets it back."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    effective = data[0]
    data[0] &= ~(1 << _NET_ADMIN)
    assert libc.capset(header, data) == 0
    try:
        return work()
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0
