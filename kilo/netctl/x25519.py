"""X25519 of RFC 7748, to derive a public key from a private one. Pure.

It runs once per start, on the host's own key, with nobody to time it: that Python's integers do
not take constant time does not matter here, and a library for one multiplication would cost
10 MB in every agent. Not for any other use.
"""

from __future__ import annotations

_P = 2**255 - 19
_A24 = 121665


def public_key(private: bytes) -> bytes:
    """The public key of 32 private bytes, clamped as the RFC says."""
    return multiply(private, (9).to_bytes(32, "little"))


def multiply(scalar: bytes, point: bytes) -> bytes:
    """The u-coordinate of ``scalar`` times ``point``, both 32 bytes: the RFC's Montgomery ladder."""
    k = int.from_bytes(scalar, "little") & ~7 & ~(1 << 255) | 1 << 254
    u = int.from_bytes(point, "little") & ~(1 << 255)
    x1, x2, z2, x3, z3, swap = u, 1, 0, u, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b = x2 + z2, x2 - z2
        aa, bb = a * a % _P, b * b % _P
        da, cb = (x3 - z3) * a % _P, (x3 + z3) * b % _P
        x3, z3 = (da + cb) ** 2 % _P, x1 * (da - cb) ** 2 % _P
        x2, e = aa * bb % _P, aa - bb
        z2 = e * (aa + _A24 * e) % _P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(32, "little")
