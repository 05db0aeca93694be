"""Calls to the kernel that Python has no functions for. The only ctypes of this package.

A call that fails raises OSError, as those of ``os`` do. Called by kilo.sandbox alone.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_ULONG = ctypes.c_ulong


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def prctl(option: int, second: int = 0, third: int = 0) -> int:
    """prctl(2); the arguments that no option used here has are 0, as the kernel wants them."""
    return _checked(_libc.prctl(option, _ULONG(second), _ULONG(third), _ULONG(0), _ULONG(0)))


def syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """syscall(2). An integer is passed as a word, None as a null pointer."""
    words = [_ULONG(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2), each a mask of capabilities by number."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    words = [
        (mask >> shift) & 0xFFFFFFFF for shift in (0, 32) for mask in (effective, permitted, inheritable)
    ]
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)(*words)))


def memory_of(content: bytes) -> ctypes.Array[ctypes.c_char]:
    """A copy of ``content`` that stays where it is for as long as it is held."""
    return ctypes.create_string_buffer(content, len(content))


def address_of(memory: ctypes.Array[ctypes.c_char]) -> int:
    """Where it is, for a structure that points to it."""
    return ctypes.addressof(memory)
